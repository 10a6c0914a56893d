// The HTTP/2 and gRPC layer alone, for load, attacks and sanitizers: every message is sent back.
//
// podium_echo [--port N] [--unix PATH] [--threads N] [--tls CHAIN KEY [ROOTS]] [--<limit> N]...: limits by HttpConfig's names.
// Says "listening PORT" when it does; on SIGTERM it drains, on SIGUSR1 it prints its counters; it ends with 0 if all went well.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "http2.h"

namespace podium {
namespace {

// Another thread that answers, as an engine does: whatever has come together, in one go for each loop.
class Worker {
 public:
  Worker() : thread_([this] { run(); }) {}
  ~Worker() { stop(); }
  // After the server's stop, before its end: nobody may post to a loop that is gone.
  void stop() {
    if (!thread_.joinable()) return;
    put(Command{});
    thread_.join();
  }
  // A command without a stream is the last.
  void put(Command&& command) {
    std::lock_guard<std::mutex> lock(mutex_);
    commands_.push_back(std::move(command));
    came_.notify_one();
  }

 private:
  void run() {
    for (bool last = false; !last;) {
      std::vector<Command> taken;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        came_.wait(lock, [this] { return !commands_.empty(); });
        taken.swap(commands_);
      }
      std::map<Loop*, std::vector<Command>> by_loop;
      for (Command& command : taken) {
        last = last || !command.stream;
        if (command.stream) by_loop[&command.stream->loop()].push_back(std::move(command));
      }
      for (auto& [loop, commands] : by_loop) loop->post(std::move(commands));
    }
  }

  std::mutex mutex_;
  std::condition_variable came_;
  std::vector<Command> commands_;
  std::thread thread_;
};

// What is kept for a call until its answer: nothing for one that is answered at once.
struct EchoCall final : Counted {
  bool streams = false;
  Bytes pending;
};

Bytes framed(const Rope& message) {
  constexpr size_t prefix_bytes = 5;
  Bytes made(prefix_bytes + message.size());
  made.data[0] = 0;
  for (size_t at = 0; at < 4; ++at) made.data[1 + at] = static_cast<uint8_t>(message.size() >> (8 * (3 - at)) & 0xff);
  message.copy(0, message.size(), made.data.get() + prefix_bytes);
  return made;
}

// By path: /echo/unary answers at half-close; /echo/stream each message at once; /echo/post as unary, by another thread's way;
// /echo/metadata sends the caller's metadata back as trailing metadata; /echo/silent never answers; /echo/fail fails with its
// message as text; /echo/peer answers with the peer and its certificate's names; /echo/flood sends a MiB a hundred times.
class EchoDoor final : public Door {
 public:
  void started(Stream& stream) override {
    auto call = Ref<EchoCall>::take(new EchoCall);
    call->streams = stream.path == "/echo/stream";
    stream.lane = Ref<Counted>(*call);
    stream.watch_deadline();
    if (stream.path == "/echo/flood") flood(stream);
    if (stream.path.rfind("/echo/", 0) != 0) stream.finish(Code::unimplemented, "Method not found!", {});
  }

  void message(Stream& stream, Rope&& message) override {
    auto& call = static_cast<EchoCall&>(*stream.lane);
    if (stream.path == "/echo/fail") {
      std::string text(message.size(), '\0');
      message.copy(0, message.size(), reinterpret_cast<uint8_t*>(text.data()));
      stream.finish(Code::invalid_argument, text, {{"reason", "asked"}, {"proof-bin", std::string("\0\1\2", 3)}});
    } else if (call.streams) {
      stream.send(framed(message));
      // a caller that does not read its answers is not read either
      if (stream.unsent_bytes() > 1 << 20) stream.read(false);
    } else {
      call.pending = framed(message);
    }
  }

  void half_closed(Stream& stream) override {
    auto& call = static_cast<EchoCall&>(*stream.lane);
    if (stream.path == "/echo/silent" || stream.path == "/echo/flood") return;
    if (stream.path == "/echo/post") {
      Command command;
      command.stream = Ref<Stream>(stream);
      command.message = std::move(call.pending);
      return worker_.put(std::move(command));
    }
    if (stream.path == "/echo/peer") call.pending = framed(described(stream));
    if (call.pending.size) stream.send(std::move(call.pending));
    stream.finish(Code::ok, "", stream.path == "/echo/metadata" ? stream.metadata : Metadata());
  }

  void gone(Stream& stream) override { stream.lane = Ref<Counted>(); }

  void writable(Stream& stream) override {
    stream.read(true);
    if (stream.path == "/echo/flood") stream.finish(Code::ok, "", {});
  }

  void round_ended(Loop&) override {}
  void stop() { worker_.stop(); }

 private:
  static void flood(Stream& stream) {
    Rope message;
    auto slab = Slab::make(1 << 20);
    std::memset(slab->data(), 'x', slab->capacity());
    message.append(slab, slab->data(), slab->capacity());
    for (int count = 0; count < 100; ++count) stream.send(framed(message));
  }

  static Rope described(const Stream& stream) {
    std::string text = stream.peer();
    for (const auto& [name, value] : stream.auth()) text += "\n" + name + "=" + value;
    auto slab = Slab::make(text.size());
    std::memcpy(slab->data(), text.data(), text.size());
    Rope rope;
    rope.append(slab, slab->data(), text.size());
    return rope;
  }

  Worker worker_;
};

struct Arguments {
  HttpConfig config;
  uint16_t port = 0;
  std::string unix_path;
  int threads = 1;
  std::string chain, key, roots;
};

std::string file_text(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::map<std::string, std::function<void(int64_t)>> limits(HttpConfig* config) {
  auto of = [](auto* field) { return [field](int64_t value) { *field = static_cast<std::decay_t<decltype(*field)>>(value); }; };
  return {{"max_message_bytes", of(&config->max_message_bytes)},
          {"max_metadata_bytes", of(&config->max_metadata_bytes)},
          {"max_connections", of(&config->max_connections)},
          {"max_concurrent_streams", of(&config->max_concurrent_streams)},
          {"max_buffered_bytes", of(&config->max_buffered_bytes)},
          {"max_unread_bytes", of(&config->max_unread_bytes)},
          {"stalled_ms", of(&config->stalled_ms)},
          {"max_connection_idle_ms", of(&config->max_connection_idle_ms)},
          {"max_connection_age_ms", of(&config->max_connection_age_ms)},
          {"max_connection_age_grace_ms", of(&config->max_connection_age_grace_ms)},
          {"keepalive_time_ms", of(&config->keepalive_time_ms)},
          {"keepalive_timeout_ms", of(&config->keepalive_timeout_ms)},
          {"keepalive_without_calls", of(&config->keepalive_without_calls)},
          {"min_ping_interval_ms", of(&config->min_ping_interval_ms)},
          {"max_pings_without_data", of(&config->max_pings_without_data)},
          {"max_ping_strikes", of(&config->max_ping_strikes)},
          {"compression", of(&config->compression)}};
}

Arguments parse(int count, char** words) {
  Arguments made;
  auto of_config = limits(&made.config);
  for (int at = 1; at < count; ++at) {
    std::string word = words[at];
    auto next = [&]() -> std::string {
      if (at + 1 >= count) throw std::runtime_error(word + " needs a value");
      return words[++at];
    };
    if (word == "--port") {
      made.port = static_cast<uint16_t>(std::stoi(next()));
    } else if (word == "--unix") {
      made.unix_path = next();
    } else if (word == "--threads") {
      made.threads = std::stoi(next());
    } else if (word == "--tls") {
      made.chain = file_text(next());
      made.key = file_text(next());
      if (at + 1 < count && words[at + 1][0] != '-') made.roots = file_text(next());
    } else {
      auto found = of_config.find(word.substr(0, 2) == "--" ? word.substr(2) : word);
      if (found == of_config.end()) throw std::runtime_error("unknown: " + word);
      found->second(std::stoll(next()));
    }
  }
  return made;
}

[[noreturn]] void failed(const char* what) { throw std::runtime_error(std::string(what) + ": " + std::strerror(errno)); }

int listen_tcp(uint16_t* port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(*port);
  socklen_t size = sizeof address;
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), size) || ::listen(fd, 1024) ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size)) {
    failed("listen");
  }
  *port = ntohs(address.sin_port);
  return fd;
}

int listen_unix(const std::string& path) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::runtime_error("the path is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) || ::listen(fd, 1024)) failed("listen");
  return fd;
}

void print(const HttpCounters& counters) {
  std::printf(
      "connections_open=%lu connections_accepted=%lu connections_refused=%lu streams_open=%lu streams_started=%lu "
      "streams_refused=%lu bytes_received=%lu bytes_sent=%lu protocol_errors=%lu floods=%lu stalled=%lu tls_failures=%lu\n",
      counters.connections_open, counters.connections_accepted, counters.connections_refused, counters.streams_open,
      counters.streams_started, counters.streams_refused, counters.bytes_received, counters.bytes_sent,
      counters.protocol_errors, counters.floods, counters.stalled, counters.tls_failures);
  std::fflush(stdout);
}

int serve(const Arguments& arguments) {
  sigset_t signals;
  sigemptyset(&signals);
  for (int each : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&signals, each);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  EchoDoor door;
  auto server = make_http_server(arguments.config, door, arguments.threads);
  bool tls = !arguments.chain.empty();
  if (tls) server->set_tls(TlsFiles{arguments.chain, arguments.key, arguments.roots});
  uint16_t port = arguments.port;
  server->listen(listen_tcp(&port), tls);
  if (!arguments.unix_path.empty()) server->listen(listen_unix(arguments.unix_path), tls);
  server->start();
  std::printf("listening %u\n", port);
  std::fflush(stdout);
  int which = 0;
  while (!sigwait(&signals, &which) && which == SIGUSR1) print(server->counters());
  server->drain();
  constexpr double most_s = 5;
  bool drained = server->wait_drained(most_s);
  server->stop();
  door.stop();
  std::printf("drained=%d ", drained);
  print(server->counters());
  return 0;
}

}  // namespace
}  // namespace podium

int main(int count, char** words) {
  try {
    return podium::serve(podium::parse(count, words));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "podium_echo: %s\n", error.what());
    return 2;
  }
}
