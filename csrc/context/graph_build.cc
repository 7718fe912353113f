// Links of the graph: from how often keys are wanted together, and from clusters.
#include <algorithm>
#include <numeric>

#include "context/graph.h"

namespace vllm_relational::context {

namespace {

constexpr size_t kMaxLists = 64;  // of one key that are looked at, evenly: a key that all queries want is in all
constexpr int32_t kMaxEntries = 16;

// In which lists each key stands: of key i those in [starts[i], starts[i + 1]).
struct Occurrences {
  std::vector<int64_t> starts;
  std::vector<int64_t> lists;
};

Occurrences occurrences(int64_t num_keys, std::span<const int32_t> lists, int64_t list_size) {
  Occurrences found{std::vector<int64_t>(static_cast<size_t>(num_keys) + 1), {}};
  for (const int32_t key : lists) {
    if (key >= 0) ++found.starts[static_cast<size_t>(key) + 1];
  }
  std::partial_sum(found.starts.begin(), found.starts.end(), found.starts.begin());
  found.lists.resize(static_cast<size_t>(found.starts.back()));
  std::vector<int64_t> next = found.starts;
  for (size_t i = 0; i < lists.size(); ++i) {
    if (lists[i] >= 0) found.lists[static_cast<size_t>(next[static_cast<size_t>(lists[i])]++)] = static_cast<int64_t>(i) / list_size;
  }
  return found;
}

// Keys that stand beside `key` in its lists, those in the most lists first.
std::vector<int32_t> companions(int32_t key, const Occurrences& where, std::span<const int32_t> lists, int64_t list_size) {
  const auto begin = static_cast<size_t>(where.starts[static_cast<size_t>(key)]);
  const auto count = static_cast<size_t>(where.starts[static_cast<size_t>(key) + 1]) - begin;
  std::vector<int32_t> beside;
  for (size_t j = 0; j < std::min(count, kMaxLists); ++j) {
    const auto list = static_cast<size_t>(where.lists[begin + j * count / std::min(count, kMaxLists)] * list_size);
    for (const int32_t other : lists.subspan(list, static_cast<size_t>(list_size))) {
      if (other >= 0 && other != key) beside.push_back(other);
    }
  }
  std::sort(beside.begin(), beside.end());
  std::vector<std::pair<int64_t, int32_t>> counted;  // how often, negative: the most first
  for (size_t i = 0, end = 0; i < beside.size(); i = end) {
    while (end < beside.size() && beside[end] == beside[i]) ++end;
    counted.emplace_back(-static_cast<int64_t>(end - i), beside[i]);
  }
  std::sort(counted.begin(), counted.end());
  std::vector<int32_t> found;
  for (const auto& [often, other] : counted) found.push_back(other);
  return found;
}

// The keys of one cluster, of each the others by distance.
void for_each_mate(const Rows& keys, std::span<const int32_t> members, const Kernels& loops, auto each) {
  const auto head_size = static_cast<size_t>(keys.head_size);
  std::vector<float> row(head_size), scores(kTile), norms;
  for (const int32_t token : members) {
    float norm = 0;
    for (int32_t c = 0; c < keys.head_size; ++c) {
      const float value = number_at(keys.row(token), keys.number, c);
      norm += value * value;
    }
    norms.push_back(norm);
  }
  const size_t most = std::min<size_t>(members.size(), kTile);
  for (const int32_t token : members) {
    for (int32_t c = 0; c < keys.head_size; ++c) row[static_cast<size_t>(c)] = number_at(keys.row(token), keys.number, c);
    loops.score(keys, {0, members.data(), static_cast<int64_t>(most)}, QueryBlock(row.data(), 1, keys.head_size), scores.data());
    std::vector<std::pair<float, int32_t>> near;
    for (size_t i = 0; i < most; ++i) {
      if (members[i] != token) near.emplace_back(norms[i] - 2 * scores[i], members[i]);
    }
    std::sort(near.begin(), near.end());
    each(token, near);
  }
}

// The keys that the most lists begin with.
std::vector<int32_t> entries_of(int64_t num_keys, std::span<const int32_t> lists, int64_t list_size) {
  std::vector<std::pair<int64_t, int32_t>> firsts(static_cast<size_t>(num_keys));
  for (size_t i = 0; i < firsts.size(); ++i) firsts[i] = {0, static_cast<int32_t>(i)};
  for (size_t i = 0; i < lists.size(); i += static_cast<size_t>(list_size)) {
    if (lists[i] >= 0) --firsts[static_cast<size_t>(lists[i])].first;
  }
  const size_t most = std::min<size_t>(firsts.size(), kMaxEntries);
  std::partial_sort(firsts.begin(), firsts.begin() + static_cast<ptrdiff_t>(most), firsts.end());
  std::vector<int32_t> entries;
  for (size_t i = 0; i < most; ++i) entries.push_back(firsts[i].second);
  return entries;
}

}  // namespace

GraphParts build_graph(const Rows& keys, std::span<const int32_t> lists, int64_t list_size, const ClustersView& clusters,
                       int32_t num_links, SimdLevel level) {
  const auto width = static_cast<size_t>(num_links);
  GraphParts parts{std::vector<int32_t>(static_cast<size_t>(keys.count) * width, -1), entries_of(keys.count, lists, list_size)};
  const Occurrences where = occurrences(keys.count, lists, list_size);
  std::vector<size_t> used(static_cast<size_t>(keys.count));
  const auto link = [&](int32_t from, int32_t to) {
    const auto own = parts.links.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(from) * width);
    size_t& count = used[static_cast<size_t>(from)];
    if (count < width && std::find(own, own + static_cast<ptrdiff_t>(count), to) == own + static_cast<ptrdiff_t>(count)) own[static_cast<ptrdiff_t>(count++)] = to;
  };
  for (int64_t j = 0; j < clusters.size(); ++j) {
    const auto at = static_cast<size_t>(j);
    const auto members = clusters.tokens.subspan(static_cast<size_t>(clusters.starts[at]), static_cast<size_t>(clusters.starts[at + 1] - clusters.starts[at]));
    for_each_mate(keys, members, kernels(level), [&](int32_t token, const auto& near) {
      for (size_t i = 0; i < near.size() && i < width / 4; ++i) link(token, near[i].second);
    });
  }
  for (int32_t key = 0; key < keys.count; ++key) {
    for (const int32_t other : companions(key, where, lists, list_size)) {
      if (used[static_cast<size_t>(key)] == width) break;
      link(key, other);
    }
  }
  return parts;
}

}  // namespace vllm_relational::context
