// decode_plain with any bytes, in any pieces: the cutting changes nothing, what is accepted lies within the message, an answer
// made of it has the size it says, and padded rows fill exactly their place.
//
// Input: one byte that says how the rest is cut (0: not at all), then the message. Routes: model "m" has inputs of every
// datatype, all optional, those but the first four padded; "e" has one without batches.
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "infer_request.h"
#include "infer_response.h"
#include "padding.h"
#include "protobuf_wire.h"
#include "require.h"

namespace {

using namespace podium;

void add_route(Routes& routes, const char* model, std::vector<TensorSpec> specs, int64_t max_batch) {
  auto route = std::make_shared<Route>();
  route->model = model;
  route->version = "1";
  route->inputs = specs;
  route->pad_sizes = pad_sizes(specs);
  route->outputs = std::move(specs);
  route->max_batch = max_batch;
  for (uint64_t mask = 0; mask < uint64_t{1} << route->inputs.size(); ++mask) route->masks.push_back(mask);
  route->answer = response_template(*route);
  for (const char* version : {"", "1"}) routes.add(model, version, route);
}

const Routes& routes() {
  static const Routes* const made = [] {
    auto* fresh = new Routes;
    std::vector<TensorSpec> all;
    for (size_t i = 0; i < std::size(datatype_names); ++i) {
      TensorSpec spec{std::string(1, static_cast<char>('a' + i)), static_cast<Datatype>(i), {-1}, true};
      if (i > 3 && item_sizes[i]) {
        spec.pad_to = {2, 5, 300};
        for (int64_t byte = 0; byte < item_sizes[i]; ++byte) spec.pad_element += static_cast<char>(i % 2 ? byte : 0);
      }
      all.push_back(std::move(spec));
    }
    add_route(*fresh, "m", all, 4);
    add_route(*fresh, "e", {TensorSpec{"x", Datatype::BYTES, {-1, 2}, false}}, 0);
    return fresh;
  }();
  return *made;
}

// Each piece in memory of its own size, so that a sanitizer sees who reads beyond it.
Rope cut(const uint8_t* data, size_t size, uint8_t how) {
  Rope rope;
  uint32_t state = how;
  while (size) {
    state = state * 1664525 + 1013904223;
    size_t wanted = how ? 1 + (state >> 16) % (how < 128 ? how : 16 * (how - 127)) : size;
    size_t part = wanted < size ? wanted : size;
    Ref<Slab> slab = Slab::make(part);
    std::memcpy(slab->data(), data, part);
    rope.append(slab, slab->data(), part);
    data += part;
    size -= part;
  }
  return rope;
}

std::string bytes_of(const PlainRequest& request, const InputData& input) {
  require(input.position <= request.message.size() && input.size <= request.message.size() - input.position, "bounds");
  std::string bytes(input.size, '\0'), same(input.size, '\0');
  request.message.copy(input.position, input.size, reinterpret_cast<uint8_t*>(bytes.data()));
  request.message.copy(input.mark, input.size, reinterpret_cast<uint8_t*>(same.data()));
  require(bytes == same, "the mark is the position");
  return bytes;
}

// In memory of its own size, so that a sanitizer sees who writes beyond it.
std::vector<uint8_t> rows_of(const PlainRequest& request, size_t index) {
  const InputData& input = request.inputs[index];
  const TensorSpec& spec = request.route->inputs[index];
  if (spec.pad_to.empty()) return {};
  int64_t size = bytes_of(spec, request.rows, padded(spec, input.dims));
  require(size >= static_cast<int64_t>(input.size), "room for all that came");
  std::vector<uint8_t> rows(static_cast<size_t>(size));
  place(request.message, input, spec, request.rows, rows.data());
  return rows;
}

void compare(const PlainRequest& cut, const PlainRequest& whole) {
  require(cut.route == whole.route && cut.id == whole.id && cut.mask == whole.mask && cut.outputs == whole.outputs, "names");
  require(
      cut.shape == whole.shape && cut.size_class == whole.size_class && cut.rows == whole.rows && cut.timing == whole.timing,
      "shape");
  require(cut.timeout_us == whole.timeout_us && cut.priority == whole.priority, "parameters");
  for (size_t i = 0; i < whole.inputs.size(); ++i) {
    if (!(whole.mask >> i & 1)) continue;
    require(bytes_of(cut, cut.inputs[i]) == bytes_of(whole, whole.inputs[i]), "elements");
    require(rows_of(cut, i) == rows_of(whole, i), "padded rows");
  }
}

void answer(const PlainRequest& request) {
  std::vector<OutputData> outputs;
  std::vector<std::string> kept;
  kept.reserve(request.inputs.size());
  for (size_t i = 0; i < request.inputs.size(); ++i) {
    if (!(request.mask >> i & 1)) continue;
    const InputData& input = request.inputs[i];
    const std::string& bytes = kept.emplace_back(bytes_of(request, input));
    outputs.push_back(OutputData{static_cast<uint16_t>(i), input.dims.data(), input.dims.size(),
                                 reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  }
  Timing timing;
  timing.wanted = request.timing;
  timing.total_us = request.timeout_us;
  size_t size = 0;
  Bytes made = encode_response(*request.route, request.id, outputs, timing, &size);
  require(made.size == size + 5, "the answer's size");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (!size) return 0;
  static PlainRequest in_pieces, whole;  // used again, as a connection does
  Rope rope = cut(data + 1, size - 1, data[0]), one = cut(data + 1, size - 1, 0);
  size_t pieces = rope.pieces().size();
  bool plain = decode_plain(rope, routes(), in_pieces);
  // names that are cut have a bound of their own, which such small inputs do not reach
  require(plain == decode_plain(one, routes(), whole) || size > wire::scratch_bytes, "the cutting");
  if (!plain) {
    require(rope.size() == size - 1 && rope.pieces().size() == pieces, "what is not plain is left alone");
    return 0;
  }
  compare(in_pieces, whole);
  in_pieces.compact();
  compare(in_pieces, whole);
  answer(in_pieces);
  return 0;
}
