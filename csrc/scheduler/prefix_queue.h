// Waiting requests in depth-first order of their common prefixes: kv/prefix_queue.py explains it and is its reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "scheduler/key_table.h"

namespace vllm_relational {

// Requests are numbers that the caller gives out; a key stands for the whole prefix up to its block. Two different
// prefixes with one key would shift the order, nothing else.
class PrefixQueue {
 public:
  PrefixQueue();

  size_t size() const { return size_; }

  // How many leading keys some waiting request has in common with these.
  size_t shared_depth(std::span<const uint64_t> keys) const;
  // A request waits; `request` is not in use. front: it comes back, before all others of its prefix.
  void add(uint32_t request, std::span<const uint64_t> keys, bool front = false);
  // It waits no longer.
  void remove(uint32_t request);
  // It starts: those that share most with it are next.
  void take(uint32_t request);
  // A request with these keys has started elsewhere: those that share most with it are next.
  void seek(std::span<const uint64_t> keys);
  // The request that is next. Somebody waits.
  uint32_t first();
  // All who wait, from the root, the oldest branch first.
  std::vector<uint32_t> all() const;

 private:
  using Keys = std::shared_ptr<const std::vector<uint64_t>>;

  // The first `depth` of `keys`. Children and requests are in lists, the oldest first.
  struct Node {
    Keys keys;
    uint32_t depth = 0;
    uint32_t parent = kNone;
    uint32_t before = kNone, after = kNone;  // siblings
    uint32_t first_child = kNone, last_child = kNone;
    uint32_t first_request = kNone, last_request = kNone;
  };

  struct Request {
    uint32_t node = kNone;
    uint32_t before = kNone, after = kNone;  // those that end at the same node
  };

  // The deepest node that is a prefix of the keys, and the one below it from which they part on the edge, or kNone.
  std::pair<uint32_t, uint32_t> walk(std::span<const uint64_t> keys) const;
  uint32_t child(uint32_t node, std::span<const uint64_t> keys) const;
  bool is_prefix(uint32_t node, std::span<const uint64_t> keys) const;
  uint32_t new_node(uint32_t parent, Keys keys, size_t depth);
  uint32_t place(const Keys& keys, bool front);
  size_t parting(uint32_t parent, uint32_t child, std::span<const uint64_t> keys) const;
  uint32_t split(uint32_t parent, uint32_t child, std::span<const uint64_t> keys);
  void add_child(uint32_t parent, uint32_t node, bool front);
  void leave(uint32_t request);
  bool is_empty(uint32_t node) const {
    return nodes_[node].first_request == kNone && nodes_[node].first_child == kNone;
  }
  void drop(uint32_t node);

  std::vector<Node> nodes_;  // nodes_[0] is the root
  std::vector<uint32_t> free_nodes_;
  std::vector<Request> requests_;
  KeyTable children_;  // by the first key below the parent
  Keys last_;
  size_t last_depth_ = 0;
  uint32_t at_ = 0;
  bool all_sought_ = true;  // whether at_ was found with all who wait now in the tree
  size_t size_ = 0;
};

}  // namespace vllm_relational
