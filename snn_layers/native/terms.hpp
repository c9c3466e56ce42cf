// What all passes share: tensors as arrays, the parts of a plane, the terms of a current. See passes.cpp.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace {

constexpr int64_t WIDTH = 256;
constexpr int64_t LINE = 64;  // bytes of a cache line, at which arrays begin: a register would else be read from two

enum Type { U8, I8, I16, I32, F32, F64 };  // in the order of calls.py

struct Array {
  void* data;
  int64_t type;
};

template <class From, class To>
void convert(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; i++) to[i] = static_cast<To>(from[i]);
}

// Returns numbers of an array as `To`: the array's own memory, or `room` that holds them converted.
template <class To>
const To* numbers(Array array, int64_t at, int64_t count, To* room) {
  const auto as = [&](auto type) { convert(static_cast<const decltype(type)*>(array.data) + at, count, room); };
  if (array.type == (sizeof(To) == 4 ? F32 : F64)) return static_cast<const To*>(array.data) + at;
  switch (array.type) {
    case U8: as(uint8_t()); break;
    case I8: as(int8_t()); break;
    case I16: as(int16_t()); break;
    case I32: as(int32_t()); break;
    case F32: as(float()); break;
    case F64: as(double()); break;
  }
  return room;
}

// Returns where spikes are written: in the array itself, or in `room`, from which `store` converts them.
float* target(Array out, int64_t at, float* room) { return out.type == F32 ? static_cast<float*>(out.data) + at : room; }

void store(const float* spikes, int64_t count, Array out, int64_t at) {
  const auto as = [&](auto type) { convert(spikes, count, static_cast<decltype(type)*>(out.data) + at); };
  switch (out.type) {
    case U8: return as(uint8_t());
    case I8: return as(int8_t());
    case F64: return as(double());
  }
}

template <class Number>
using Numbers = std::unique_ptr<Number[], decltype(&std::free)>;

template <class Number>
Numbers<Number> array(int64_t count) {
  const int64_t lines = count * sizeof(Number) / LINE + 1;
  return {static_cast<Number*>(std::aligned_alloc(LINE, lines * LINE)), &std::free};
}

// Accumulator [planes, N, C] and further terms of a current; where spikes go, and what is added to them.
struct Terms {
  Array accumulator;
  const Array* others;
  int64_t count, rows, channels;
  Array out;
  float zero;

  int64_t total() const { return rows * channels; }

  // A plane is made of tiles of whole rows, and a tile of parts.
  int64_t tile() const { return std::max(WIDTH / channels, int64_t(1)) * channels; }

  // Returns constants [kinds, C], or [kinds, 1], along a tile: [kinds, tile].
  template <class Number>
  Numbers<Number> tiled(const Number* values, int64_t kinds, bool per_channel) const {
    auto made = array<Number>(kinds * tile());
    Number* next = made.get();
    for (int64_t kind = 0; kind < kinds; kind++)
      for (int64_t row = 0; row < tile(); row += channels)
        next = per_channel ? std::copy_n(values + kind * channels, channels, next) : std::fill_n(next, channels, values[kind]);
    return made;
  }

  // Calls body(place in the plane, place in the tile, numbers) for each part.
  template <class Body>
  void each(const Body& body) const {
    const int64_t length = tile(), parts = (length + WIDTH - 1) / WIDTH, tiles = (total() + length - 1) / length;
#pragma omp parallel for schedule(static)
    for (int64_t index = 0; index < tiles * parts; index++) {
      const int64_t first = index % parts * WIDTH, at = index / parts * length + first;
      if (at < total()) body(at, first, std::min({WIDTH, length - first, total() - at}));
    }
  }

  // Writes scale · accumulator + bias + Σ factor · other; `currents` are [2 + count, stride].
  void scaled(const double* currents, int64_t stride, int64_t at, int64_t size, double* current) const {
    alignas(LINE) double room[WIDTH];
    const double* values = numbers(accumulator, at, size, room);
    for (int64_t i = 0; i < size; i++) current[i] = values[i] * currents[i] + currents[stride + i];
    for (int64_t term = 0; term < count; term++) {
      const double *other = numbers(others[term], at, size, room), *factor = currents + (2 + term) * stride;
      for (int64_t i = 0; i < size; i++) current[i] += other[i] * factor[i];
    }
  }
};

}  // namespace
