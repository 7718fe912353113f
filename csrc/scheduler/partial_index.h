// Which cached block starts with the longest run of given tokens, among the blocks that continue one prefix:
// kv/partial_index.py explains it and is its reference.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "scheduler/key_table.h"

namespace vllm_relational {

// The whole hash of a prefix, shorter ones filled up with zeros: reuse must not rest on a part of it.
using PrefixHash = std::array<uint64_t, 4>;

// Blocks are numbers below num_blocks; each is held at most once.
class PartialIndex {
 public:
  PartialIndex(size_t num_blocks, size_t block_size)
      : block_size_(block_size), tokens_(num_blocks * block_size), nodes_of_(num_blocks, kNone) {}

  size_t size() const { return size_; }
  size_t num_prefixes() const { return table_.size(); }
  bool holds(uint32_t block) const { return nodes_of_[block] != kNone; }

  // Enters a whole block of tokens that continues a prefix; a block already held is moved there. Of two prefixes whose
  // first 8 bytes are equal only one has blocks: no such pair is known.
  void add(const PrefixHash& prefix, std::span<const int32_t> tokens, uint32_t block);

  // Forgets a block; does nothing when it is not held.
  void remove(uint32_t block);

  void clear();

  // The block after `prefix` that starts with the most of `tokens` (at most a block of them), and how many they are;
  // {kNone, 0} if no block shares even the first.
  std::pair<uint32_t, size_t> longest(const PrefixHash& prefix, std::span<const int32_t> tokens) const;

 private:
  // A prefix and the blocks after it, sorted by their tokens.
  struct Node {
    PrefixHash prefix;
    uint32_t only = kNone;      // as long as there is one, as for most: no memory beside the node
    std::vector<uint32_t> all;  // once there were two
  };

  uint32_t node_of(const PrefixHash& prefix);
  std::span<const int32_t> tokens_of(uint32_t block) const {
    return {tokens_.data() + block * block_size_, block_size_};
  }
  bool is_before(uint32_t one, uint32_t other) const;

  size_t block_size_;
  std::vector<int32_t> tokens_;     // by block
  std::vector<uint32_t> nodes_of_;  // by block
  KeyTable table_;                  // from the first 8 bytes of a prefix to its node
  std::vector<Node> nodes_;
  std::vector<uint32_t> free_nodes_;
  size_t size_ = 0;
};

}  // namespace vllm_relational
