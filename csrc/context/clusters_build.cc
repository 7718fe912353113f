// k-means of the keys of one segment after the other.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "context/clusters.h"

namespace vllm_relational::context {

namespace {

// float32 -> the nearest bfloat16.
uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

// The keys of a segment in float32, and those numbers of theirs that centres have: bfloat16, so that scores are fast.
struct Segment {
  int32_t head_size;
  std::vector<int32_t> tokens;
  std::vector<float> values;      // [num_keys, head_size]
  std::vector<uint16_t> rounded;  // [num_keys, head_size]

  size_t size() const { return tokens.size(); }
  const float* row(size_t i) const { return values.data() + i * static_cast<size_t>(head_size); }
};

Segment segment_of(const Rows& keys, int64_t first, int64_t count, std::vector<int32_t>& odd) {
  Segment segment{keys.head_size, {}, {}, {}};
  std::vector<float> row(static_cast<size_t>(keys.head_size));
  for (int64_t i = first; i < first + count; ++i) {
    bool is_moderate = true;
    for (int32_t c = 0; c < keys.head_size; ++c) {
      const float value = number_at(keys.row(i), keys.number, c);
      row[static_cast<size_t>(c)] = value;
      is_moderate = is_moderate && std::abs(value) < 0x1p60F;
    }
    if (!is_moderate) {
      odd.push_back(static_cast<int32_t>(i));
      continue;
    }
    segment.tokens.push_back(static_cast<int32_t>(i));
    segment.values.insert(segment.values.end(), row.begin(), row.end());
  }
  segment.rounded.resize(segment.values.size());
  std::transform(segment.values.begin(), segment.values.end(), segment.rounded.begin(), to_bf16);
  return segment;
}

// Which centre each key is nearest to: the greatest k.c - c.c / 2.
void assign(const Segment& segment, const std::vector<float>& centres, const Kernels& loops, std::vector<int32_t>& nearest) {
  const auto head_size = static_cast<size_t>(segment.head_size);
  const auto num_centres = static_cast<int32_t>(centres.size() / head_size);
  const auto num_keys = static_cast<int64_t>(segment.size());
  const Rows rows{reinterpret_cast<const std::byte*>(segment.rounded.data()), num_keys, segment.head_size, Number::kBf16};
  std::vector<float> best(segment.size(), -std::numeric_limits<float>::infinity());
  std::vector<float> scores(QueryBlock::kHeads * kTile);
  for (int32_t first = 0; first < num_centres; first += QueryBlock::kHeads) {
    const int32_t here = std::min(num_centres - first, QueryBlock::kHeads);
    const float* const block = centres.data() + static_cast<size_t>(first) * head_size;
    const QueryBlock queries(block, here, segment.head_size);
    for (int64_t begin = 0; begin < num_keys; begin += kTile) {
      const int64_t count = std::min<int64_t>(kTile, num_keys - begin);
      loops.score(rows, {begin, nullptr, count}, queries, scores.data());
      for (int32_t h = 0; h < here; ++h) {
        const float* const centre = block + static_cast<size_t>(h) * head_size;
        const float half = std::inner_product(centre, centre + head_size, centre, 0.0F) / 2;
        const float* const own = scores.data() + h * kTile;
        float* const most = best.data() + begin;
        int32_t* const at = nearest.data() + begin;
        for (int64_t i = 0; i < count; ++i) {
          const bool is_better = own[i] - half > most[i];
          most[i] = is_better ? own[i] - half : most[i];
          at[i] = is_better ? first + h : at[i];
        }
      }
    }
  }
}

// Means of the keys of each centre, in bfloat16; a centre without keys stays.
void move_centres(const Segment& segment, const std::vector<int32_t>& nearest, std::vector<float>& centres) {
  const auto head_size = static_cast<size_t>(segment.head_size);
  std::vector<float> sums(centres.size());
  std::vector<int32_t> counts(centres.size() / head_size);
  for (size_t i = 0; i < segment.size(); ++i) {
    const auto at = static_cast<size_t>(nearest[i]);
    ++counts[at];
    for (size_t c = 0; c < head_size; ++c) sums[at * head_size + c] += segment.row(i)[c];
  }
  for (size_t j = 0; j < counts.size(); ++j) {
    for (size_t c = 0; counts[j] > 0 && c < head_size; ++c) {
      centres[j * head_size + c] = from_bf16(to_bf16(sums[j * head_size + c] / static_cast<float>(counts[j])));
    }
  }
}

// Begins with keys that lie evenly spread in the segment.
std::vector<int32_t> k_means(const Segment& segment, const ClusterSettings& settings, const Kernels& loops) {
  const auto head_size = static_cast<size_t>(segment.head_size);
  const size_t num_centres = (segment.size() + static_cast<size_t>(settings.cluster_size) - 1) / static_cast<size_t>(settings.cluster_size);
  std::vector<float> centres;
  for (size_t j = 0; j < num_centres; ++j) {
    const size_t i = j * segment.size() / num_centres;
    for (size_t c = 0; c < head_size; ++c) centres.push_back(from_bf16(segment.rounded[i * head_size + c]));
  }
  std::vector<int32_t> nearest(segment.size());
  for (int32_t round = 0; round < settings.rounds; ++round) {
    assign(segment, centres, loops, nearest);
    if (round + 1 < settings.rounds) move_centres(segment, nearest, centres);
  }
  return nearest;
}

// Adds one cluster: keys `members` of the segment.
void add_cluster(const Segment& segment, const std::vector<size_t>& members, ClusterParts& parts) {
  const auto head_size = static_cast<size_t>(segment.head_size);
  std::vector<float> mean(head_size), square(head_size), away(head_size);
  for (const size_t i : members) {
    for (size_t c = 0; c < head_size; ++c) mean[c] += segment.row(i)[c];
  }
  for (size_t c = 0; c < head_size; ++c) mean[c] = from_bf16(to_bf16(mean[c] / static_cast<float>(members.size())));
  for (const size_t i : members) {
    for (size_t c = 0; c < head_size; ++c) away[c] = segment.row(i)[c] - mean[c];
    for (size_t c = 0; c < head_size; ++c) square[c] += away[c] * away[c];
    for (size_t a = 0; a < head_size; ++a) {
      float* const row = parts.covariance.data() + a * head_size;
      for (size_t b = 0; b < head_size; ++b) row[b] += away[a] * away[b];
    }
    parts.tokens.push_back(segment.tokens[i]);
  }
  for (size_t c = 0; c < head_size; ++c) {
    parts.means.push_back(to_bf16(mean[c]));
    parts.variances.push_back(to_bf16(square[c] / static_cast<float>(members.size())));
  }
  parts.starts.push_back(static_cast<int32_t>(parts.tokens.size()));
}

}  // namespace

ClusterParts build_clusters(const Rows& keys, const ClusterSettings& settings, SimdLevel level) {
  const auto head_size = static_cast<size_t>(keys.head_size);
  ClusterParts parts;
  parts.starts.push_back(0);
  parts.covariance.resize(head_size * head_size);
  for (int64_t first = 0; first < keys.count; first += settings.segment) {
    const Segment segment = segment_of(keys, first, std::min<int64_t>(settings.segment, keys.count - first), parts.odd);
    const std::vector<int32_t> nearest = k_means(segment, settings, kernels(level));
    const int32_t last = nearest.empty() ? -1 : *std::max_element(nearest.begin(), nearest.end());
    std::vector<std::vector<size_t>> members(static_cast<size_t>(last + 1));
    for (size_t i = 0; i < nearest.size(); ++i) members[static_cast<size_t>(nearest[i])].push_back(i);
    for (const std::vector<size_t>& own : members) {
      if (!own.empty()) add_cluster(segment, own, parts);
    }
  }
  for (float& each : parts.covariance) each /= static_cast<float>(std::max<size_t>(parts.tokens.size(), 1));
  return parts;
}

}  // namespace vllm_relational::context
