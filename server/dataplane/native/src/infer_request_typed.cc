// InferTensorContents: the elements of one input in the one field that fits its datatype.
#include "infer_request_parts.h"

namespace podium::wire {

namespace {

// Field by datatype, in the order of `Datatype`; 0 where there is none.
constexpr uint32_t fields[] = {1, 4, 4, 4, 5, 2, 2, 2, 3, 0, 6, 7, 0, 8};

// Floats lie as they shall already, if they came in one part.
bool in_place(Reader& reader, uint32_t field, uint64_t wanted_bytes, Span& span) {
  uint32_t found;
  size_t bytes;
  if (!reader.field(found) || found != tag(field, Type::length)) return false;
  if (!reader.size(bytes) || bytes != wanted_bytes) return false;
  span = Span{reader.position(), bytes, reader.mark()};
  reader.skip(bytes);
  return reader.done();
}

template <typename Element>
void put(uint8_t* target, uint64_t index, Element element) {
  std::memcpy(target + index * sizeof(Element), &element, sizeof(Element));
}

// `value` as the field's type has it, narrowed; false where it does not fit.
template <typename Wide, typename Element>
bool narrow(uint64_t value, uint8_t* target, uint64_t index) {
  Wide wide = static_cast<Wide>(value);
  put(target, index, static_cast<Element>(wide));
  return static_cast<Wide>(static_cast<Element>(wide)) == wide;
}

bool put_integer(Datatype datatype, uint64_t value, uint8_t* target, uint64_t index) {
  switch (datatype) {
    case Datatype::BOOL:
      put<uint8_t>(target, index, value != 0);
      return true;
    case Datatype::INT8:
      return narrow<int32_t, int8_t>(value, target, index);
    case Datatype::INT16:
      return narrow<int32_t, int16_t>(value, target, index);
    case Datatype::INT32:
      return narrow<int32_t, int32_t>(value, target, index);
    case Datatype::UINT8:
      return narrow<uint32_t, uint8_t>(value, target, index);
    case Datatype::UINT16:
      return narrow<uint32_t, uint16_t>(value, target, index);
    case Datatype::UINT32:
      return narrow<uint32_t, uint32_t>(value, target, index);
    default:
      put(target, index, value);
      return true;
  }
}

bool read_integers(Reader& reader, Datatype datatype, uint32_t field, uint64_t count, uint8_t* target) {
  uint64_t index = 0, value;
  uint32_t found;
  auto next = [&] { return index < count && reader.number(value) && put_integer(datatype, value, target, index++); };
  while (!reader.done()) {
    if (!reader.field(found)) return false;
    if (found == tag(field, Type::varint)) {
      if (!next()) return false;
      continue;
    }
    size_t bytes;
    if (found != tag(field, Type::length) || !reader.size(bytes)) return false;
    size_t outer = reader.enter(bytes);
    while (!reader.done()) {
      if (!next()) return false;
    }
    reader.leave(outer);
  }
  return index == count;
}

bool read_texts(Reader& reader, uint32_t field, uint64_t count, uint8_t* target, size_t& made_size) {
  const uint8_t* first = target;
  uint64_t index = 0;
  uint32_t found;
  size_t bytes;
  for (; !reader.done(); ++index) {
    if (index == count || !reader.field(found) || found != tag(field, Type::length) || !reader.size(bytes)) return false;
    put(target, 0, static_cast<uint32_t>(bytes));
    reader.copy(bytes, target + 4);
    target += 4 + bytes;
  }
  made_size = static_cast<size_t>(target - first);
  return index == count;
}

}  // namespace

bool read_typed(const Rope& rope, Datatype datatype, uint64_t count, Span& span, Ref<Slab>& made, size_t& made_size) {
  auto type = static_cast<size_t>(datatype);
  uint32_t field = fields[type];
  made_size = 0;
  // an element takes a byte at least, so that nothing much larger than the message is allocated
  if (!field || count > span.size) return false;
  if (!span.size) return true;
  Reader reader(rope, span.mark, span.position, span.size);
  auto item = static_cast<uint64_t>(item_sizes[type]);
  if (datatype == Datatype::FP32 || datatype == Datatype::FP64) return in_place(reader, field, count * item, span);
  if (datatype == Datatype::BYTES) {
    // a tag and a length of a byte each or more become a length of four
    made = Slab::make(span.size + 2 * count);
    return read_texts(reader, field, count, made->data(), made_size);
  }
  made_size = count * item;
  made = Slab::make(made_size);
  return read_integers(reader, datatype, field, count, made->data());
}

}  // namespace podium::wire
