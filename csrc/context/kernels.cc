// The portable loops, which compilers turn into the vector instructions that every processor of a kind has, and the
// choice between the levels.
#include "context/kernels.h"

#include <array>

namespace vllm_relational::context {

namespace {

constexpr int32_t kLanes = 16;

// A row in float32, zeros behind its end.
template <Number kNumber>
void widen(const std::byte* row, int32_t head_size, float* out) {
  for (int32_t c = 0; c < head_size; ++c) out[c] = number_at(row, kNumber, c);
}

void widen(const Rows& rows, int64_t i, float* out) {
  const std::byte* const row = rows.row(i);
  switch (rows.number) {
    case Number::kBf16: return widen<Number::kBf16>(row, rows.head_size, out);
    case Number::kF16: return widen<Number::kF16>(row, rows.head_size, out);
    case Number::kF32: return widen<Number::kF32>(row, rows.head_size, out);
  }
}

float dot(const float* a, const float* b, int32_t padded) {
  std::array<float, kLanes> sums{};
  float* const lanes = sums.data();
  for (int32_t c = 0; c < padded; c += kLanes) {
    for (int32_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[c + lane] * b[c + lane];
  }
  float sum = 0;
  for (int32_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

void score(const Rows& rows, RowSet which, const QueryBlock& queries, float* out) {
  const int32_t padded = (rows.head_size + kLanes - 1) / kLanes * kLanes;
  alignas(64) float by_head[QueryBlock::kHeads][kMaxHeadSize];
  alignas(64) float row[kMaxHeadSize] = {};
  const float* const channels = queries.channels.data();
  for (int32_t h = 0; h < queries.num_heads; ++h) {
    for (int32_t c = 0; c < padded; ++c) by_head[h][c] = channels[c * QueryBlock::kHeads + h];
  }
  for (int64_t i = 0; i < which.count; ++i) {
    widen(rows, which[i], row);
    for (int32_t h = 0; h < queries.num_heads; ++h) out[h * kTile + i] = dot(row, by_head[h], padded);
  }
}

int32_t select(const float* scores, int32_t count, float threshold, int32_t* out) {
  int32_t found = 0;
  for (int32_t i = 0; i < count; ++i) {
    out[found] = i;
    found += !(scores[i] < threshold);
  }
  return found;
}

void add_rows(const Rows& rows, RowSet which, const float* weights, float* sum) {
  alignas(64) float row[kMaxHeadSize];
  for (int64_t i = 0; i < which.count; ++i) {
    widen(rows, which[i], row);
    for (int32_t c = 0; c < rows.head_size; ++c) sum[c] += weights[i] * row[c];
  }
}

void score_codes(const CodeGroup& group, int32_t head_size, int32_t num_heads, float* out) {
  float sums[QueryBlock::kHeads][kGroup] = {};
  for (int32_t c = 0; c < head_size; ++c) {
    const uint32_t* const words = group.words + c / 8 * kGroup;
    float codes[kGroup];
    const float scale = from_bf16(group.scales[c]);
    for (int32_t i = 0; i < kGroup; ++i) codes[i] = scale * static_cast<float>(words[i] >> (c % 8 * 4) & 15);
    for (int32_t h = 0; h < num_heads; ++h) {
      const float query = group.channels[c * QueryBlock::kHeads + h];
      for (int32_t i = 0; i < kGroup; ++i) sums[h][i] += query * codes[i];
    }
  }
  for (int32_t h = 0; h < num_heads; ++h) {
    for (int32_t i = 0; i < kGroup; ++i) out[h * kTile + i] = group.base[h] + sums[h][i];
  }
}

}  // namespace

const Kernels kPortableKernels{score, select, add_rows, score_codes};

const Kernels& kernels(SimdLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case SimdLevel::kAvx512Bf16: return kAvx512Bf16Kernels;
    case SimdLevel::kAvx512: return kAvx512Kernels;
    case SimdLevel::kAvx2: return kAvx2Kernels;
    case SimdLevel::kPortable: break;
  }
#endif
  (void)level;
  return kPortableKernels;
}

}  // namespace vllm_relational::context
