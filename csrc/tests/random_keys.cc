#include "random_keys.h"

#include <random>

namespace vllm_relational::context {

namespace {

// float32 -> float16 by cutting; the value is of moderate size.
uint16_t cut_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7FFFFFFFU;
  if (magnitude < 0x38800000U) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000U) >> 13);
}

}  // namespace

RandomKeys::RandomKeys(int64_t count, int32_t head_size, Number number, uint32_t seed)
    : bytes(static_cast<size_t>(count * head_size) * bytes_of(number)) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> centre(static_cast<size_t>(head_size));
  for (int64_t i = 0; i < count; ++i) {
    for (int32_t c = 0; c < head_size; ++c) {
      if (i % 40 == 0) centre[static_cast<size_t>(c)] = normal(random);
      const auto place = static_cast<size_t>(i * head_size + c);
      const auto bits = std::bit_cast<uint32_t>(centre[static_cast<size_t>(c)] + 0.3F * normal(random));
      const auto half = number == Number::kBf16 ? static_cast<uint16_t>(bits >> 16) : cut_to_f16(std::bit_cast<float>(bits));
      if (number == Number::kF32) std::memcpy(bytes.data() + place * 4, &bits, 4);
      else std::memcpy(bytes.data() + place * 2, &half, 2);
    }
  }
  rows = {bytes.data(), count, head_size, number};
}

double RandomKeys::product(int64_t i, const float* query) const {
  double sum = 0;
  for (int32_t c = 0; c < rows.head_size; ++c) {
    sum += static_cast<double>(number_at(rows.row(i), rows.number, c)) * static_cast<double>(query[c]);
  }
  return sum;
}

std::vector<float> random_queries(int32_t num_heads, int32_t head_size, bool is_bf16) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> queries(static_cast<size_t>(num_heads) * static_cast<size_t>(head_size));
  for (float& each : queries) {
    each = normal(random);
    if (is_bf16) each = std::bit_cast<float>(std::bit_cast<uint32_t>(each) & 0xFFFF0000U);
  }
  return queries;
}

}  // namespace vllm_relational::context
