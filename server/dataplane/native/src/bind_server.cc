// Server and Call: what server/transport/native is made of.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "bindings.h"
#include "bound_plane.h"
#include "calls.h"
#include "door.h"
#include "http2.h"

namespace nb = nanobind;

namespace podium {

namespace {

bool binary(std::string_view name) { return name.size() > 4 && name.substr(name.size() - 4) == "-bin"; }

nb::object taken_over(PyObject* made) {
  if (!made) throw nb::python_error();
  return nb::steal(made);
}

nb::object bytes_of(std::string_view bytes) { return taken_over(PyBytes_FromStringAndSize(bytes.data(), bytes.size())); }

nb::object bytes_of(const Rope& rope) {
  nb::object made = taken_over(PyBytes_FromStringAndSize(nullptr, rope.size()));
  rope.copy(0, rope.size(), reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(made.ptr())));
  return made;
}

// As grpcio does: what is no UTF-8 is taken for Latin-1, which everything is.
nb::object text_of(std::string_view text) {
  PyObject* made = PyUnicode_DecodeUTF8(text.data(), text.size(), nullptr);
  if (!made) {
    PyErr_Clear();
    made = PyUnicode_DecodeLatin1(text.data(), text.size(), nullptr);
  }
  return taken_over(made);
}

nb::list pairs_of(const Metadata& metadata) {
  nb::list made;
  for (const auto& [name, value] : metadata) {
    made.append(nb::make_tuple(text_of(name), binary(name) ? bytes_of(value) : text_of(value)));
  }
  return made;
}

std::string string_of(nb::handle value) {
  if (PyBytes_Check(value.ptr())) return {PyBytes_AS_STRING(value.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(value.ptr()))};
  return nb::cast<std::string>(value);
}

Metadata metadata_of(nb::handle pairs) {
  Metadata made;
  for (nb::handle pair : pairs) made.emplace_back(string_of(pair[0]), string_of(pair[1]));
  return made;
}

// With gRPC's prefix: not compressed, and the length. Shared, because std::function copies what it runs, and bytes are not
// copied.
std::shared_ptr<Bytes> framed(const nb::bytes& message) {
  constexpr size_t prefix_bytes = 5;
  size_t size = message.size();
  if (size > UINT32_MAX) throw nb::value_error("a message cannot have more than 4 GiB");
  auto made = std::make_shared<Bytes>(prefix_bytes + size);
  uint8_t* target = made->data.get();
  const uint8_t prefix[prefix_bytes] = {0, static_cast<uint8_t>(size >> 24), static_cast<uint8_t>(size >> 16),
                                        static_cast<uint8_t>(size >> 8), static_cast<uint8_t>(size)};
  std::memcpy(target, prefix, prefix_bytes);
  std::memcpy(target + prefix_bytes, message.data(), size);
  return made;
}

template <typename T>
bool set_if(const char* name, T& field, const std::string& key, nb::handle value) {
  if (key != name) return false;
  field = nb::cast<T>(value);
  return true;
}

HttpConfig config_of(const nb::dict& values) {
  HttpConfig made;
  for (auto [name, value] : values) {
    std::string key = nb::cast<std::string>(name);
#define PODIUM_FIELD(field) set_if(#field, made.field, key, value)
    bool known = PODIUM_FIELD(max_message_bytes) || PODIUM_FIELD(max_metadata_bytes) || PODIUM_FIELD(max_connections) ||
                 PODIUM_FIELD(max_concurrent_streams) || PODIUM_FIELD(max_buffered_bytes) || PODIUM_FIELD(max_unread_bytes) ||
                 PODIUM_FIELD(stalled_ms) || PODIUM_FIELD(max_connection_idle_ms) || PODIUM_FIELD(max_connection_age_ms) ||
                 PODIUM_FIELD(max_connection_age_grace_ms) || PODIUM_FIELD(keepalive_time_ms) ||
                 PODIUM_FIELD(keepalive_timeout_ms) || PODIUM_FIELD(keepalive_without_calls) ||
                 PODIUM_FIELD(min_ping_interval_ms) || PODIUM_FIELD(max_pings_without_data) || PODIUM_FIELD(max_ping_strikes) ||
                 PODIUM_FIELD(compression);
#undef PODIUM_FIELD
    if (!known) throw nb::value_error(("unknown setting '" + key + "'").c_str());
  }
  return made;
}

// What a server and its calls share: loops must be there for as long as anybody can ask for one. Destroyed on a thread of Python.
struct Serving {
  explicit Serving(nb::object plane) : plane(std::move(plane)) {}
  ~Serving() {
    // an IO thread may be waiting for the interpreter, in `handshake`
    nb::gil_scoped_release others_run;
    http.reset();
  }

  nb::object plane;
  nb::object handshake;
  Calls calls;
  std::unique_ptr<Door> door;
  std::unique_ptr<HttpServer> http;
  std::atomic<bool> stopped{false};
};

class Call {
 public:
  Call(std::shared_ptr<Serving> serving, Ref<Stream> stream, std::unique_ptr<CallFacts> facts)
      : serving_(std::move(serving)), stream_(std::move(stream)), facts_(std::move(facts)) {}
  ~Call() { serving_->calls.forget(*stream_); }
  Call(const Call&) = delete;

  const Stream& stream() const { return *stream_; }
  const CallFacts& facts() const { return *facts_; }

  void start(nb::handle initial) {
    on_loop([initial = metadata_of(initial)](Stream& stream) { stream.begin(initial); });
  }

  void send(const nb::bytes& message) {
    on_loop([message = framed(message)](Stream& stream) { stream.send(std::move(*message)); });
  }

  void finish(int code, const std::string& text, nb::handle trailing) {
    serving_->calls.forget(*stream_);
    on_loop([code = static_cast<Code>(code), text, trailing = metadata_of(trailing)](Stream& stream) {
      stream.finish(code, text, trailing);
    });
  }

  void answer(const nb::bytes& message, const std::string& text, nb::handle trailing) {
    serving_->calls.forget(*stream_);
    on_loop([message = framed(message), text, trailing = metadata_of(trailing)](Stream& stream) {
      stream.send(std::move(*message));
      stream.finish(Code::ok, text, trailing);
    });
  }

  void taken(size_t size) {
    if (serving_->calls.taken(*stream_, size)) on_loop([](Stream& stream) { stream.read(true); });
  }

  void want_writable() {
    on_loop([&calls = serving_->calls](Stream& stream) { calls.want_writable(stream); });
  }

 private:
  template <typename Work>
  void on_loop(Work&& work) {
    if (serving_->stopped) return;
    facts_->loop->call([stream = stream_, work = std::forward<Work>(work)] { work(*stream); });
  }

  std::shared_ptr<Serving> serving_;
  Ref<Stream> stream_;
  std::unique_ptr<CallFacts> facts_;
};

class Server {
 public:
  Server(nb::object plane, const nb::dict& config, int io_threads, bool subjects, size_t max_stream_requests,
         size_t max_stream_bytes)
      : serving_(std::make_shared<Serving>(std::move(plane))) {
    if (serving_->plane.is_none()) {
      serving_->door = std::make_unique<SlowDoor>(serving_->calls);
    } else {
      serving_->door = make_door(nb::cast<BoundPlane&>(serving_->plane), serving_->calls, io_threads, subjects,
                                 StreamLimits{max_stream_requests, max_stream_bytes});
    }
    serving_->http = make_http_server(config_of(config), *serving_->door, io_threads);
  }

  HttpServer& http() { return *serving_->http; }
  int event_fd() const { return serving_->calls.event_fd(); }

  void on_handshake(nb::object check) {
    serving_->handshake = std::move(check);
    http().on_handshake([serving = serving_.get()] {
      nb::gil_scoped_acquire interpreter;
      nb::object check = serving->handshake;
      if (!check.is_valid() || check.is_none()) return;
      try {
        check();
      } catch (nb::python_error& error) {
        error.discard_as_unraisable("podium: before a handshake");
      }
    });
  }

  void stop() {
    {
      nb::gil_scoped_release others_run;
      http().stop();
    }
    serving_->stopped = true;
    serving_->handshake = nb::none();
  }

  nb::list take_events() {
    nb::list made;
    for (CallEvent& event : serving_->calls.take()) {
      auto key = reinterpret_cast<uintptr_t>(event.stream.get());
      nb::object payload = nb::none();
      if (event.kind == Event::message) {
        payload = bytes_of(event.message);
        event.message = Rope();  // what it was received in is free at once, not after all of them
      } else if (event.kind == Event::started) {
        payload = nb::cast(new Call(serving_, std::move(event.stream), std::move(event.facts)), nb::rv_policy::take_ownership);
      }
      made.append(nb::make_tuple(static_cast<int>(event.kind), key, payload));
    }
    return made;
  }

  nb::dict counters() {
    HttpCounters counted = http().counters();
    nb::dict made;
#define PODIUM_COUNTER(name) made[#name] = counted.name
    PODIUM_COUNTER(connections_open);
    PODIUM_COUNTER(connections_accepted);
    PODIUM_COUNTER(connections_refused);
    PODIUM_COUNTER(streams_open);
    PODIUM_COUNTER(streams_started);
    PODIUM_COUNTER(streams_refused);
    PODIUM_COUNTER(bytes_received);
    PODIUM_COUNTER(bytes_sent);
    PODIUM_COUNTER(bytes_copied);
    PODIUM_COUNTER(protocol_errors);
    PODIUM_COUNTER(floods);
    PODIUM_COUNTER(stalled);
    PODIUM_COUNTER(tls_failures);
#undef PODIUM_COUNTER
    return made;
  }

 private:
  std::shared_ptr<Serving> serving_;
};

nb::dict auth_of(const Call& call) {
  nb::dict made;
  for (const auto& [name, value] : call.facts().auth) {
    nb::object key = text_of(name);
    if (!made.contains(key)) made[key] = nb::list();
    nb::cast<nb::list>(made[key]).append(bytes_of(value));
  }
  return made;
}

}  // namespace

void bind_server(nb::module_& module) {
  nb::class_<Call>(module, "Call",
                   "One call that Python answers. Thread-safe: what it is told is done on its connection's loop.")
      .def_prop_ro("path", [](const Call& call) { return text_of(call.stream().path); })
      .def_prop_ro("metadata", [](const Call& call) { return pairs_of(call.stream().metadata); })
      .def_prop_ro("arrival_ns", [](const Call& call) { return call.stream().arrival_ns; })
      .def_prop_ro("deadline_ns",
                   [](const Call& call) -> nb::object {
                     int64_t deadline_ns = call.stream().deadline_ns;
                     return deadline_ns < no_deadline_ns ? nb::int_(deadline_ns) : nb::object(nb::none());
                   })
      .def_prop_ro("peer", [](const Call& call) { return text_of(call.facts().peer); })
      .def("auth", &auth_of, "Properties of the caller's certificate, each with its values.")
      .def("start", &Call::start, "Send the headers now, with this metadata.")
      .def("send", &Call::send, "One message; headers go before the first.")
      .def("finish", &Call::finish, "End the call. What comes later of it is dropped.")
      .def("answer", &Call::answer, "The one message of a call, and its end with the code 0.")
      .def("taken", &Call::taken, "A handler has taken a message of so many bytes.")
      .def("want_writable", &Call::want_writable, "One event `writable` once everything that was sent is written.");

  nb::class_<Server>(module, "Server", "An HTTP/2 server whose calls come as events. One thread of Python drives it.")
      .def(nb::init<nb::object, const nb::dict&, int, bool, size_t, size_t>(), nb::arg("plane").none(), nb::arg("config"),
           nb::arg("io_threads"), nb::arg("subjects") = false, nb::arg("max_stream_requests") = StreamLimits().max_requests,
           nb::arg("max_stream_bytes") = StreamLimits().max_bytes,
           "`plane` None: every call becomes an event. `subjects`: callers have certificates that say who they are.")
      .def(
          "listen", [](Server& server, int fd, bool tls) { server.http().listen(fd, tls); }, "Takes over a listening socket.")
      .def("set_tls",
           [](Server& server, const nb::bytes& chain, const nb::bytes& key, const nb::bytes& roots) {
             server.http().set_tls({string_of(chain), string_of(key), string_of(roots)});
           })
      .def("on_handshake", &Server::on_handshake, "Called, on an IO thread, before each handshake.")
      .def("start", [](Server& server) { server.http().start(); })
      .def("drain", [](Server& server) { server.http().drain(); })
      .def(
          "wait_drained", [](Server& server, double timeout_s) { return server.http().wait_drained(timeout_s); },
          nb::call_guard<nb::gil_scoped_release>())
      .def("stop", &Server::stop)
      .def("counters", &Server::counters)
      .def_prop_ro("event_fd", &Server::event_fd)
      .def("take_events", &Server::take_events,
           "All events since the last time: (kind, key of the call, Call or bytes or None).");
}

}  // namespace podium
