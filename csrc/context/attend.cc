#include "context/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vllm_relational::context {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// exp(scale * score - greatest) of each: their sum, and the greatest. NaN where a score is NaN or inf.
double weigh(const float* scores, size_t count, float scale, float& greatest, std::vector<float>& weights) {
  greatest = -kInfinity;
  for (size_t i = 0; i < count; ++i) greatest = !(scale * scores[i] <= greatest) ? scale * scores[i] : greatest;
  weights.resize(count);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    weights[i] = std::exp(scale * scores[i] - greatest);
    sum += static_cast<double>(weights[i]);
  }
  return sum;
}

}  // namespace

void attend(const Rows& values, std::span<const int64_t> offsets, const int32_t* tokens, const float* scores,
            float scale, SimdLevel level, float* out, float* lse) {
  std::vector<float> weights;
  for (size_t h = 0; h + 1 < offsets.size(); ++h) {
    const auto begin = offsets[h];
    const auto count = static_cast<size_t>(offsets[h + 1] - begin);
    float* const own = out + h * static_cast<size_t>(values.head_size);
    std::fill_n(own, values.head_size, 0.0F);
    float greatest;
    const double sum = weigh(scores + begin, count, scale, greatest, weights);
    lse[h] = count == 0 ? -kInfinity : greatest + static_cast<float>(std::log(sum));
    if (count == 0) continue;
    kernels(level).add_rows(values, {0, tokens + begin, static_cast<int64_t>(count)}, weights.data(), own);
    for (int32_t c = 0; c < values.head_size; ++c) own[c] = static_cast<float>(static_cast<double>(own[c]) / sum);
  }
}

}  // namespace vllm_relational::context
