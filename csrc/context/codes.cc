#include "context/codes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace vllm_relational::context {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kCodes = 15;  // the greatest code
// A scale is never so small beside its zero point that rounding in float32 would show beside half a scale.
constexpr float kMinScale = 0x1p-12F;
constexpr float kMaxKey = 0x1p100F;
constexpr int32_t kGroupsAtOnce = kTile / kGroup;

// What rounding adds to half a scale: sums of head_size products in float32.
float slack_of(int32_t head_size) { return 1.0F + 0x1p-4F * std::max(1.0F, static_cast<float>(head_size) / 128.0F); }

uint16_t bf16_below(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const bool is_exact = (bits & 0xFFFFU) == 0;
  return static_cast<uint16_t>((bits >> 16) + (value < 0 && !is_exact ? 1 : 0));
}

uint16_t bf16_above(float value) { return static_cast<uint16_t>(bf16_below(-value) ^ 0x8000U); }

struct Channel {
  uint16_t zero, scale;
};

Channel channel_of(float low, float high) {
  const uint16_t zero = bf16_below(low);
  const float at = from_bf16(zero);
  const float scale = std::max({(high - at) * (1.0F + 0x1p-20F) / kCodes, std::abs(at) * kMinScale, 0x1p-100F});
  return {zero, bf16_above(scale)};
}

void encode_group(const Rows& keys, int64_t first, int64_t count, uint16_t* zeros, uint16_t* scales, uint32_t* words) {
  for (int32_t c = 0; c < keys.head_size; ++c) {
    std::array<float, kGroup> values{};
    bool is_finite = true;
    for (int64_t i = 0; i < count; ++i) {
      values[static_cast<size_t>(i)] = number_at(keys.row(first + i), keys.number, c);
      is_finite = is_finite && std::abs(values[static_cast<size_t>(i)]) <= kMaxKey;
    }
    const auto [low, high] = std::minmax_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(count));
    const Channel channel = is_finite ? channel_of(*low, *high) : Channel{0x7FC0, 0};
    zeros[c] = channel.zero;
    scales[c] = channel.scale;
    if (!is_finite) continue;
    const float zero = from_bf16(channel.zero), scale = from_bf16(channel.scale);
    for (int64_t i = 0; i < count; ++i) {
      const float code = std::floor((values[static_cast<size_t>(i)] - zero) / scale + 0.5F);
      words[c / 8 * kGroup + i] |= static_cast<uint32_t>(std::clamp(code, 0.0F, kCodes)) << (c % 8 * 4);
    }
  }
}

// Bounds of a tile of groups: of head h and key i of the tile `upper[h * kTile + i]`; the lower one is 2 * reach below,
// of head h and group g `reach[h * kGroupsAtOnce + g]`.
class Bounds {
 public:
  Bounds(const Rows& keys, const CodesView& codes, QueryHeads queries, int32_t first_head, SimdLevel level)
      : keys_(keys), codes_(codes), loops_(kernels(level)), num_words_((keys.head_size + 7) / 8),
        heads_(std::min(queries.num_heads - first_head, QueryBlock::kHeads)),
        block_(queries.data + static_cast<ptrdiff_t>(first_head) * keys.head_size, heads_, keys.head_size),
        sizes_(sizes_of(queries, first_head).data(), heads_, keys.head_size) {}

  int32_t heads() const { return heads_; }

  void of(int64_t first_group, int64_t num_groups) {
    const int64_t all = (keys_.count + kGroup - 1) / kGroup;
    const RowSet groups{first_group, nullptr, num_groups};
    const auto as_rows = [&](const uint16_t* data) {
      return Rows{reinterpret_cast<const std::byte*>(data), all, keys_.head_size, Number::kBf16};
    };
    loops_.score(as_rows(codes_.zeros), groups, block_, at_zero_.data());
    loops_.score(as_rows(codes_.scales), groups, sizes_, reaches_.data());
    const float slack = slack_of(keys_.head_size);
    for (int64_t g = 0; g < num_groups; ++g) {
      std::array<float, QueryBlock::kHeads> base{};
      for (int32_t h = 0; h < heads_; ++h) {
        reach[static_cast<size_t>(h * kGroupsAtOnce + g)] = reaches_[static_cast<size_t>(h * kTile + g)] * 0.5F * slack;
        base[static_cast<size_t>(h)] = at_zero_[static_cast<size_t>(h * kTile + g)] + reach[static_cast<size_t>(h * kGroupsAtOnce + g)];
      }
      const auto group = static_cast<size_t>(first_group + g);
      const CodeGroup view{codes_.words + group * static_cast<size_t>(num_words_ * kGroup),
                           codes_.scales + group * static_cast<size_t>(keys_.head_size), block_.channels.data(), base.data()};
      loops_.score_codes(view, keys_.head_size, heads_, upper.data() + g * kGroup);
    }
  }

  std::vector<float> upper = std::vector<float>(QueryBlock::kHeads * kTile);
  std::vector<float> reach = std::vector<float>(QueryBlock::kHeads * kGroupsAtOnce);

 private:
  std::vector<float> sizes_of(QueryHeads queries, int32_t first_head) const {
    const float* const begin = queries.data + static_cast<ptrdiff_t>(first_head) * keys_.head_size;
    std::vector<float> sizes(begin, begin + static_cast<ptrdiff_t>(heads_) * keys_.head_size);
    for (float& each : sizes) each = std::abs(each);
    return sizes;
  }

  const Rows& keys_;
  const CodesView& codes_;
  const Kernels& loops_;
  int32_t num_words_, heads_;
  QueryBlock block_, sizes_;
  std::vector<float> at_zero_ = std::vector<float>(QueryBlock::kHeads * kTile);
  std::vector<float> reaches_ = std::vector<float>(QueryBlock::kHeads * kTile);
};

// Calls each(first key of the tile, keys that count from, to, bounds, first head) for all tiles of the range.
template <class Each>
void for_each_tile(const Rows& keys, const CodesView& codes, int64_t start, int64_t stop, QueryHeads queries,
                   SimdLevel level, Each each) {
  for (int32_t head = 0; head < queries.num_heads; head += QueryBlock::kHeads) {
    Bounds bounds(keys, codes, queries, head, level);
    for (int64_t group = start / kGroup; group * kGroup < stop; group += kGroupsAtOnce) {
      const int64_t end = std::min((stop + kGroup - 1) / kGroup, group + kGroupsAtOnce);
      bounds.of(group, end - group);
      const int64_t first = group * kGroup;
      each(first, std::max<int64_t>(start - first, 0), std::min<int64_t>(stop - first, kTile), bounds, head);
    }
  }
}

// The least that a head can keep, best - beta, and the keys whose upper bound reaches it.
struct Candidates {
  float beta;
  float best;
  bool rises;  // best is the greatest lower bound seen; else it stays
  std::vector<std::pair<int32_t, float>> found;

  void add(const Kernels& loops, int64_t first, int64_t from, int64_t to, const float* upper, const float* reach,
           std::vector<int32_t>& places) {
    const int32_t count = loops.select(upper + from, static_cast<int32_t>(to - from), best - beta, places.data());
    for (int32_t i = 0; i < count; ++i) {
      const int64_t place = from + places[static_cast<size_t>(i)];
      const float lower = upper[place] - 2 * reach[place / kGroup];
      best = rises && lower > best ? lower : best;
      found.emplace_back(static_cast<int32_t>(first + place), upper[place]);
    }
  }

  void mark(std::vector<bool>& marked) const {
    for (const auto& [token, upper] : found) {
      if (!(upper < best - beta)) marked[static_cast<size_t>(token)] = true;
    }
  }
};

std::vector<int32_t> listed(const std::vector<bool>& marked) {
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < marked.size(); ++i) {
    if (marked[i]) tokens.push_back(static_cast<int32_t>(i));
  }
  return tokens;
}

std::vector<bool> candidates(const Rows& keys, const CodesView& codes, int64_t start, int64_t stop, QueryHeads queries,
                             std::vector<Candidates> heads, SimdLevel level) {
  std::vector<int32_t> places(kTile + 16);
  for_each_tile(keys, codes, start, stop, queries, level,
                [&](int64_t first, int64_t from, int64_t to, const Bounds& bounds, int32_t head) {
                  for (int32_t h = 0; h < bounds.heads(); ++h) {
                    heads[static_cast<size_t>(head + h)].add(kernels(level), first, from, to, bounds.upper.data() + h * kTile,
                                                             bounds.reach.data() + h * kGroupsAtOnce, places);
                  }
                });
  std::vector<bool> marked(static_cast<size_t>(keys.count));
  for (const Candidates& head : heads) head.mark(marked);
  return marked;
}

}  // namespace

Codes encode(const Rows& keys) {
  const auto num_groups = static_cast<size_t>((keys.count + kGroup - 1) / kGroup);
  const auto head_size = static_cast<size_t>(keys.head_size);
  const size_t group_words = (head_size + 7) / 8 * kGroup;
  Codes codes{std::vector<uint16_t>(num_groups * head_size), std::vector<uint16_t>(num_groups * head_size),
              std::vector<uint32_t>(num_groups * group_words)};
  for (size_t g = 0; g < num_groups; ++g) {
    const auto first = static_cast<int64_t>(g * kGroup);
    encode_group(keys, first, std::min<int64_t>(kGroup, keys.count - first), codes.zeros.data() + g * head_size,
                 codes.scales.data() + g * head_size, codes.words.data() + g * group_words);
  }
  return codes;
}

Hits codes_dipr(const Rows& keys, const CodesView& codes, int64_t start, int64_t stop, QueryHeads queries, float beta,
                const float* lower, SimdLevel level) {
  std::vector<Candidates> heads;
  for (int32_t h = 0; h < queries.num_heads; ++h) heads.push_back({beta, lower == nullptr ? -kInfinity : lower[h], true, {}});
  const auto tokens = listed(candidates(keys, codes, start, stop, queries, std::move(heads), level));
  return scan_listed_dipr(keys, tokens, queries, beta, lower, level);
}

Hits codes_topk(const Rows& keys, const CodesView& codes, int64_t start, int64_t stop, QueryHeads queries, int64_t k,
                SimdLevel level) {
  const auto most = static_cast<size_t>(std::min(k, stop - start));
  std::vector<Greatest> least(static_cast<size_t>(queries.num_heads), Greatest(most));
  std::vector<int32_t> places(kTile + 16);
  std::vector<float> lower(kTile);
  for_each_tile(keys, codes, start, stop, queries, level,
                [&](int64_t first, int64_t from, int64_t to, const Bounds& bounds, int32_t head) {
                  for (int32_t h = 0; h < bounds.heads(); ++h) {
                    const float* const upper = bounds.upper.data() + h * kTile;
                    const float* const reach = bounds.reach.data() + h * kGroupsAtOnce;
                    for (int64_t i = from; i < to; ++i) {
                      const float bound = upper[i] - 2 * reach[i / kGroup];
                      lower[static_cast<size_t>(i)] = bound > -kInfinity ? bound : -kInfinity;  // NaN says nothing
                    }
                    least[static_cast<size_t>(head + h)].add(kernels(level), lower.data() + from, {first + from, nullptr, to - from}, places);
                  }
                });
  std::vector<Candidates> heads;
  for (Greatest& head : least) heads.push_back({0.0F, most == 0 ? kInfinity : head.last(), false, {}});
  const auto tokens = listed(candidates(keys, codes, start, stop, queries, std::move(heads), level));
  return scan_listed_topk(keys, tokens, queries, static_cast<int64_t>(most), level);
}

}  // namespace vllm_relational::context
