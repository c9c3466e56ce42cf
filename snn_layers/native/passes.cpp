// The passes of a deployed network over its accumulators, for a CPU: `fire`, `fire_steps` and `fire_levels` of fused.py and `tally`
// of analysis.py. Those say what is computed; the tests compare spikes with these bit by bit.
//
// A tensor [planes, N, C] is planes of N·C numbers. A part of a plane, at most WIDTH numbers, goes through all time steps while its
// membranes stay in the nearest cache: memory is read and written once. The compiler makes vector instructions of the loops over
// the numbers of a part. Products are rounded before they are added, as in PyTorch (-ffp-contract=off).

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "terms.hpp"

namespace {

// The neurons of a part. Each value is a pair whose sum counts, or a single number.
template <class Number, int pair>
struct Neurons {
  alignas(LINE) Number membrane[pair][WIDTH], fired[WIDTH] = {}, current[pair][WIDTH], room[WIDTH];
  const Number* constants;  // θ, bias, factor, retraction and further factors: [kinds, pair, stride]
  int64_t stride, size;

  Neurons(const Number* constants, int64_t stride, int64_t size, double start) : constants(constants), stride(stride), size(size) {
    for (int part = 0; part < pair; part++)
      for (int64_t i = 0; i < size; i++) membrane[part][i] = constant(0, part)[i] * static_cast<Number>(start);
  }

  const Number* constant(int64_t kind, int part) const { return constants + (kind * pair + part) * stride; }

  // Adds a current to the membranes.
  void receive(const Number* accumulator, const Terms& terms, int64_t count, int64_t at) {
    for (int64_t i = 0; i < size; i++) current[0][i] = accumulator[i] + constant(1, 0)[i];
    if (pair == 2) std::copy_n(constant(1, pair - 1), size, current[pair - 1]);
    for (int64_t term = 0; term < count; term++) {
      const Number* other = numbers(terms.others[term], at, size, room);
      for (int part = 0; part < pair; part++) {
        const Number* factor = constant(term ? 3 + term : 2, part);
        for (int64_t i = 0; i < size; i++) current[part][i] += other[i] * factor[i];
      }
    }
    for (int part = 0; part < pair; part++)
      for (int64_t i = 0; i < size; i++) membrane[part][i] += current[part][i];
  }

  // Fires once; before that, receives an accumulator and another term if they are there: `receive` in the same loop.
  template <bool is_signed, bool receives, bool two>
  void fire(float zero, float* spikes, const Number* accumulator = nullptr, const Number* other = nullptr) {
    constexpr int low = pair - 1;
    const Number *theta = constant(0, 0), *bias = constant(1, 0), *factor = constant(2, 0), *bound = constant(3, 0);
    const Number *theta_low = constant(0, low), *bias_low = constant(1, low), *factor_low = constant(2, low),
                 *bound_low = constant(3, low);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
      Number v = membrane[0][i], rest = membrane[low][i], spike, back;
      if (receives) {
        Number now = accumulator[i] + bias[i], now_low = bias_low[i];
        if (two) now += other[i] * factor[i];
        if (two) now_low += other[i] * factor_low[i];
        v += now;
        rest += now_low;
      }
      if (pair == 2) {
        spike = v - theta[i] >= theta_low[i] - rest ? 1 : 0;
        back = bound[i] - v >= rest - bound_low[i] ? 1 : 0;
      } else {
        spike = v >= theta[i] ? 1 : 0;
        back = bound[i] >= v ? 1 : 0;
      }
      if (is_signed) {
        spike -= back < fired[i] ? back : fired[i];
        fired[i] += spike;
      }
      if (pair == 2) membrane[low][i] = rest - spike * theta_low[i];
      membrane[0][i] = v - spike * theta[i];
      spikes[i] = static_cast<float>(spike) + zero;
    }
  }
};

template <class Number, int pair, bool is_signed>
void fire_all(const Terms& terms, int64_t planes, const Number* constants, int64_t kinds, bool per_channel, const double* currents,
              int64_t steps, int64_t delay, double start) {
  const int64_t scales = 2 + std::max<int64_t>(terms.count, 1), length = terms.tile();
  const auto tiled = terms.tiled(constants, kinds * pair, per_channel);
  const auto scaled = terms.tiled(currents, currents ? scales * steps : 0, true);  // [scales, T, length]
  const int64_t count = currents ? 0 : terms.count;  // of terms beside the accumulator or a scaled current
  terms.each([&](int64_t at, int64_t first, int64_t size) {
    Neurons<Number, pair> neurons(tiled.get() + first, length, size, start);
    alignas(LINE) Number room[WIDTH], other[WIDTH];
    alignas(LINE) float stored[WIDTH];
    int64_t seen = 0;
    const auto place = [&](int64_t plane) { return std::min(plane, planes - 1) * terms.total() + at; };
    // The accumulators of a plane, or its scaled currents.
    const auto received = [&](int64_t plane) -> const Number* {
      if constexpr (pair == 1)
        if (currents) {
          terms.scaled(scaled.get() + plane * length + first, steps * length, place(plane), size, room);
          return room;
        }
      return numbers(terms.accumulator, place(plane), size, room);
    };
    for (int64_t step = 0; step < steps; step++) {
      const int64_t to = step * terms.total() + at;
      float* spikes = target(terms.out, to, stored);
      if (delay == 0 && count == 0) {
        neurons.template fire<is_signed, true, false>(terms.zero, spikes, received(step));
      } else if (delay == 0 && count == 1) {
        const Number* second = numbers(terms.others[0], place(step), size, other);
        neurons.template fire<is_signed, true, true>(terms.zero, spikes, received(step), second);
      } else {
        for (; seen < std::min(step + 1 + delay, steps); seen++)
          neurons.receive(received(seen), terms, count, place(seen));
        neurons.template fire<is_signed, false, false>(terms.zero, spikes);
      }
      store(spikes, size, terms.out, to);
    }
  });
}

}  // namespace

extern "C" {

// constants are float32 pairs [kinds, 2, C], or float64 [kinds, 1, C or 1]; with `currents` [scales, T, C] this is `fire_steps`.
void fire(Array accumulator, const Array* others, int64_t count, int64_t rows, int64_t channels, Array out, float zero,
          int64_t planes, Array constants, int64_t kinds, int64_t per_channel, const double* currents, int64_t steps,
          int64_t is_signed, int64_t delay, double start) {
  const Terms terms{accumulator, others, count, rows, channels, out, zero};
  if (constants.type == F64) {
    const auto pass = is_signed ? fire_all<double, 1, true> : fire_all<double, 1, false>;
    pass(terms, planes, static_cast<double*>(constants.data), kinds, per_channel, currents, steps, delay, start);
  } else {
    const auto pass = is_signed ? fire_all<float, 2, true> : fire_all<float, 2, false>;
    pass(terms, planes, static_cast<float*>(constants.data), kinds, per_channel, nullptr, steps, delay, start);
  }
}

// currents [scales, C or 1].
void fire_levels(Array accumulator, const Array* others, int64_t count, int64_t rows, int64_t channels, Array out, float zero,
                 const double* currents, int64_t scales, int64_t per_channel, double threshold, double most) {
  const Terms terms{accumulator, others, count, rows, channels, out, zero};
  const auto scaled = terms.tiled(currents, scales, per_channel);
  terms.each([&](int64_t at, int64_t first, int64_t size) {
    alignas(LINE) double current[WIDTH];
    alignas(LINE) float room[WIDTH];
    float* spikes = target(out, at, room);
    terms.scaled(scaled.get() + first, terms.tile(), at, size, current);
    for (int64_t i = 0; i < size; i++)
      spikes[i] = static_cast<float>(std::min(std::max(std::rint(current[i] / threshold), 0.0), most)) + zero;  // half to even
    store(spikes, size, out, at);
  });
}

// spikes [T, total], values [total]; sums [3] in float64.
void tally(Array spikes, int64_t steps, int64_t total, Array values, float unit, float ann_unit, float zero, float ann_zero,
           double* sums) {
  double absolute = 0, balance = 0, error = 0;
#pragma omp parallel for schedule(static) reduction(+ : absolute, balance, error)
  for (int64_t at = 0; at < total; at += WIDTH) {
    const int64_t size = std::min(WIDTH, total - at);
    alignas(LINE) float count[WIDTH] = {}, squares[WIDTH] = {}, room[WIDTH];
    float part_squares = 0, part_count = 0, part_error = 0;
    for (int64_t step = 0; step < steps; step++) {
      const float* stored = numbers(spikes, step * total + at, size, room);
      for (int64_t i = 0; i < size; i++) {
        const float fired = stored[i] - zero;
        count[i] += fired;
        squares[i] += fired * fired;
      }
    }
    const float* value = numbers(values, at, size, room);
#pragma omp simd reduction(+ : part_squares, part_count, part_error)
    for (int64_t i = 0; i < size; i++) {
      part_squares += squares[i];
      part_count += count[i];
      part_error += std::fabs(count[i] * unit - (value[i] - ann_zero) * ann_unit);
    }
    absolute += part_squares;
    balance += part_count;
    error += part_error;
  }
  sums[0] = absolute;
  sums[1] = (absolute - balance) / 2;
  sums[2] = error;
}

}  // extern "C"
