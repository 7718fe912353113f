// The prefix tree of all blocks of a batch: every distinct block has a number, its parent and its depth.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "native_limits.h"

namespace vllm_relational {

// Blocks are known by the hashes of BlockChains; the odds of a mix-up are those told in prefix_cache.h. Memory: about
// 30 bytes a distinct block.
class BlockTree {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;  // no block: what the first block of a prompt hangs from

  explicit BlockTree(const Limits& limits = {});

  // Makes `path` the nodes of `chain`, new ones where needed. Its first `num_unchanged` are right already.
  void follow(std::span<const uint64_t> chain, size_t num_unchanged, std::vector<Node>& path);

  Node parent(Node node) const { return parents_[node]; }
  uint32_t depth(Node node) const { return depths_[node]; }  // 0 for the root
  size_t size() const { return hashes_.size(); }             // with the root

 private:
  struct Slot {
    uint32_t tag;  // low half of the hash, as in PrefixCache
    Node node;     // kRoot in an empty slot
  };

  Node find_or_insert(uint64_t hash, Node parent);
  void grow_table();

  int64_t max_blocks_;
  std::vector<Slot> slots_;  // open addressing, linear probing, a power of two of slots
  std::vector<uint64_t> hashes_;
  std::vector<Node> parents_;
  std::vector<uint32_t> depths_;
};

}  // namespace vllm_relational
