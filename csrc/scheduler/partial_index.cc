#include "scheduler/partial_index.h"

#include <algorithm>

namespace vllm_relational {

void PartialIndex::add(const PrefixHash& prefix, std::span<const int32_t> tokens, uint32_t block) {
  remove(block);
  const uint32_t number = node_of(prefix);
  Node& node = nodes_[number];
  if (node.prefix != prefix) return;
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + static_cast<std::ptrdiff_t>(block * block_size_));
  nodes_of_[block] = number;
  ++size_;
  if (node.only == kNone && node.all.empty()) {
    node.only = block;
    return;
  }
  if (node.all.empty()) node.all.push_back(std::exchange(node.only, kNone));
  const auto less = [this](uint32_t one, uint32_t other) { return is_before(one, other); };
  node.all.insert(std::upper_bound(node.all.begin(), node.all.end(), block, less), block);
}

// The node of the prefix, a new one if there is none; of another prefix if their keys are equal.
uint32_t PartialIndex::node_of(const PrefixHash& prefix) {
  uint32_t& found = table_.insert(prefix[0]);
  if (found != kNone) return found;
  if (free_nodes_.empty()) {
    found = static_cast<uint32_t>(nodes_.size());
    nodes_.emplace_back();
  } else {
    found = free_nodes_.back();
    free_nodes_.pop_back();
  }
  nodes_[found].prefix = prefix;
  return found;
}

void PartialIndex::remove(uint32_t block) {
  const uint32_t number = std::exchange(nodes_of_[block], kNone);
  if (number == kNone) return;
  --size_;
  Node& node = nodes_[number];
  if (!node.all.empty()) {
    const auto less = [this](uint32_t one, uint32_t other) { return is_before(one, other); };
    node.all.erase(std::lower_bound(node.all.begin(), node.all.end(), block, less));
  }
  if (!node.all.empty()) return;
  table_.erase(node.prefix[0]);
  node = {};
  free_nodes_.push_back(number);
}

void PartialIndex::clear() {
  table_ = {};
  nodes_.clear();
  free_nodes_.clear();
  nodes_of_.assign(nodes_of_.size(), kNone);
  size_ = 0;
}

std::pair<uint32_t, size_t> PartialIndex::longest(const PrefixHash& prefix, std::span<const int32_t> tokens) const {
  std::pair<uint32_t, size_t> best{kNone, 0};
  const uint32_t number = table_.find(prefix[0]);
  if (number == kNone || nodes_[number].prefix != prefix) return best;
  const auto consider = [&](uint32_t block) {
    const auto [there, here] = std::mismatch(tokens.begin(), tokens.end(), tokens_of(block).begin());
    const auto shared = static_cast<size_t>(there - tokens.begin());
    if (shared > best.second) best = {block, shared};
  };
  const auto& [_, only, all] = nodes_[number];
  if (only != kNone) consider(only);
  const auto after = std::lower_bound(all.begin(), all.end(), tokens, [this](uint32_t one, auto query) {
    return std::ranges::lexicographical_compare(tokens_of(one), query);
  });
  if (after != all.begin()) consider(*(after - 1));
  if (after != all.end()) consider(*after);
  return best;
}

// Equal blocks stand in the order of their numbers, so that each is found again.
bool PartialIndex::is_before(uint32_t one, uint32_t other) const {
  const auto order = std::lexicographical_compare_three_way(tokens_of(one).begin(), tokens_of(one).end(),
                                                            tokens_of(other).begin(), tokens_of(other).end());
  return order != 0 ? order < 0 : one < other;
}

}  // namespace vllm_relational
