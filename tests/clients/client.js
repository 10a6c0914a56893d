// The client of Node.js against a server: unary calls, metadata, errors, deadlines, cancels and a stream, as its users write them.
// node client.js ADDRESS FOLDER_OF_PROTOS; what it saw goes to standard output as JSON. Nothing here judges it: test_grpc_js.py does.
'use strict';

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, root] = process.argv.slice(2);
const definition = loader.loadSync('protos/grpc_service.proto', {
  includeDirs: [root], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true,
});
const service = grpc.loadPackageDefinition(definition).inference.GRPCInferenceService;
const client = new service(address, grpc.credentials.createInsecure(), { 'grpc.max_receive_message_length': -1 });

function rows(values) {
  const raw = Buffer.alloc(4 * values.length);
  values.forEach((value, place) => raw.writeFloatLE(value, 4 * place));
  return raw;
}

function question(model, id, values) {
  const shape = [values.length / 4, 4];
  return { model_name: model, id, inputs: [{ name: 'x', datatype: 'FP32', shape }], raw_input_contents: [rows(values)] };
}

function numbers(response) {
  const raw = response.raw_output_contents[0];
  return Array.from({ length: raw.length / 4 }, (_, place) => raw.readFloatLE(4 * place));
}

// One call: its answer, or how it ended.
function ask(message, options = {}, metadata = new grpc.Metadata()) {
  return new Promise((resolve) => {
    const call = client.ModelInfer(message, metadata, options, (error, response) => {
      resolve(error ? { code: grpc.status[error.code], text: error.details } : { id: response.id, values: numbers(response) });
    });
    if (options.cancelAfterMs !== undefined) setTimeout(() => call.cancel(), options.cancelAfterMs);
  });
}

async function stream(messages) {
  const seen = [];
  const call = client.ModelStreamInfer();
  const ended = new Promise((resolve) => {
    call.on('data', (message) => {
      const response = message.infer_response;
      seen.push(message.error_message ? { error: message.error_message } : { id: response.id, values: numbers(response) });
    });
    call.on('error', (error) => resolve({ code: grpc.status[error.code], text: error.details }));
    call.on('end', () => resolve({ code: 'OK' }));
  });
  for (const message of messages) call.write(message);
  call.end();
  return { seen, ended: await ended };
}

async function main() {
  const ready = await new Promise((resolve, reject) => {
    client.ServerReady({}, (error, response) => (error ? reject(error) : resolve(response.ready)));
  });
  const many = Array.from({ length: 200 }, (_, place) => ask(question('echo', `m${place}`, [place, 1, 2, 3])));
  const large = Array.from({ length: 16 * 20000 }, (_, place) => place % 1000);
  const metadata = new grpc.Metadata();
  metadata.set('podium-consumer', 'node');
  const found = {
    ready,
    many: await Promise.all(many),
    large: (await ask({ ...question('wide', 'large', large), inputs: [{ name: 'x', datatype: 'FP32', shape: [16, 20000] }] })).values,
    declared: await ask(question('echo', 'declared', [1, 2, 3, 4]), {}, metadata),
    unknown: await ask(question('nobody', 'u', [1, 2, 3, 4])),
    wrong: await ask(question('echo', 'w', [1, 2, 3, 4, 5, 6, 7, 8].concat(Array(4 * 40).fill(0)))),
    late: await ask(question('slow', 'l', [1, 2, 3, 4]), { deadline: Date.now() + 50 }),
    cancelled: await ask(question('slow', 'c', [1, 2, 3, 4]), { cancelAfterMs: 30 }),
    stream: await stream([question('echo', 'a', [1, 2, 3, 4]), question('nobody', 'b', [1, 2, 3, 4]), question('echo', 'c', [5, 6, 7, 8])]),
    after: await ask(question('echo', 'after', [9, 9, 9, 9])),
  };
  client.close();
  process.stdout.write(JSON.stringify(found));
}

main().catch((error) => { process.stderr.write(`${error.stack}\n`); process.exit(1); });
