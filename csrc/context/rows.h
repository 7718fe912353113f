// Keys or values of one KV head as they lie in memory, and the queries of the heads that share them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

namespace vllm_relational::context {

enum class Number : uint8_t { kBf16, kF16, kF32 };

inline constexpr size_t bytes_of(Number number) { return number == Number::kF32 ? 4 : 2; }

// `count` rows of `head_size` numbers, one behind the other. head_size: even, from 2 to kMaxHeadSize.
struct Rows {
  const std::byte* data = nullptr;
  int64_t count = 0;
  int32_t head_size = 0;
  Number number = Number::kBf16;

  const std::byte* row(int64_t i) const {
    return data + static_cast<size_t>(i) * static_cast<size_t>(head_size) * bytes_of(number);
  }
};

inline constexpr int32_t kMaxHeadSize = 256;

inline float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// The numbers of float16 below its exponent's greatest are those of float32 with another exponent: a product puts it
// right, of the smallest too.
inline float from_f16(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7FFFU;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  const uint32_t special = 0x7F800000U | (magnitude << 13);
  const uint32_t positive = magnitude >= 0x7C00U ? special : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(positive | static_cast<uint32_t>(bits & 0x8000U) << 16);
}

// One number of a row.
inline float number_at(const std::byte* row, Number number, int32_t channel) {
  if (number == Number::kF32) {
    float value;
    std::memcpy(&value, row + static_cast<size_t>(channel) * 4, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, row + static_cast<size_t>(channel) * 2, 2);
  return number == Number::kBf16 ? from_bf16(bits) : from_f16(bits);
}

// Rows to look at: first, first + 1, ..., or those that `listed` names.
struct RowSet {
  int64_t first = 0;
  const int32_t* listed = nullptr;
  int64_t count = 0;

  int64_t operator[](int64_t i) const { return listed == nullptr ? first + i : listed[i]; }
  RowSet part(int64_t begin, int64_t size) const {
    return listed == nullptr ? RowSet{first + begin, nullptr, size} : RowSet{0, listed + begin, size};
  }
};

// Up to kHeads query heads of a KV head, the channels of all heads together: what a loop over keys reads in order.
struct QueryBlock {
  static constexpr int32_t kHeads = 8;

  // queries: float32 [num_heads, head_size], num_heads from 1 to kHeads.
  QueryBlock(const float* queries, int32_t num_heads, int32_t head_size);

  int32_t num_heads;
  int32_t head_size;
  bool is_bf16;                  // every number is one of bfloat16
  std::vector<float> channels;   // [head_size rounded up to 16, kHeads], zeros where there is none
  std::vector<uint32_t> pairs;   // the same of bfloat16, two channels in a word: [head_size / 2 rounded up, kHeads]
};

}  // namespace vllm_relational::context
