#include <limits>
#include <queue>
#include <vector>

#include "replay/block_tree.h"
#include "replay/replay_policies.h"

namespace vllm_relational {
namespace {

using Node = BlockTree::Node;

class FifoCache {
 public:
  FifoCache(const BlockTree& tree, int64_t capacity) : tree_(tree), capacity_(capacity) {}

  // Serves a request (counted from 1) whose first `num_unchanged` blocks are those of the request before; returns how
  // many leading blocks were cached.
  int64_t admit(const std::vector<Node>& path, size_t num_unchanged, uint32_t request) {
    inserted_.resize(tree_.size(), 0);
    num_children_.resize(tree_.size(), 0);
    size_t hits = num_unchanged;
    while (hits < path.size() && inserted_[path[hits]] != 0) ++hits;
    for (size_t i = hits; i < path.size(); ++i) insert(path[i], request);
    if (hits < path.size()) leaves_.push(leaf(path.back()));
    evict_over_capacity(path.empty() ? BlockTree::kRoot : path.back());
    return static_cast<int64_t>(hits);
  }

 private:
  struct Leaf {
    uint64_t key;  // request that inserted it, then the depth from deep to shallow: unlike for any two blocks
    Node node;
    bool operator<(const Leaf& other) const { return key > other.key; }  // the queue's top is its greatest
  };

  Leaf leaf(Node node) const {
    const uint32_t height = std::numeric_limits<uint32_t>::max() - tree_.depth(node);
    return {uint64_t{inserted_[node]} << 32 | height, node};
  }

  void insert(Node node, uint32_t request) {
    inserted_[node] = request;
    ++num_children_[tree_.parent(node)];
    ++size_;
  }

  // Of the request's own blocks only the last can be a leaf, so it alone must be kept from going.
  void evict_over_capacity(Node own_last) {
    bool held_back = false;
    while (size_ > capacity_ && !leaves_.empty()) {
      const Leaf oldest = leaves_.top();
      leaves_.pop();
      if (!is_current(oldest)) continue;
      if (oldest.node == own_last) {
        held_back = true;
      } else {
        evict(oldest.node);
      }
    }
    if (held_back) leaves_.push(leaf(own_last));
  }

  // A leaf that got children, or went and came back, has an entry that says so no more.
  bool is_current(const Leaf& entry) const {
    return num_children_[entry.node] == 0 && inserted_[entry.node] == entry.key >> 32;
  }

  void evict(Node node) {
    inserted_[node] = 0;
    --size_;
    const Node parent = tree_.parent(node);
    if (--num_children_[parent] == 0 && parent != BlockTree::kRoot) leaves_.push(leaf(parent));
  }

  const BlockTree& tree_;
  int64_t capacity_;
  int64_t size_ = 0;
  std::vector<uint32_t> inserted_;      // by node: the request that inserted it; 0: not in the cache
  std::vector<int32_t> num_children_;  // by node: its children in the cache
  std::priority_queue<Leaf> leaves_;
};

}  // namespace

ReplayResult replay_fifo(BlockChains& chains, size_t num_requests, int64_t capacity_blocks, const Limits& limits) {
  BlockTree tree(limits);
  FifoCache cache(tree, capacity_blocks);
  std::vector<Node> path;
  ReplayResult result;
  for (size_t asked = 0; asked < num_requests; ++asked) {
    const size_t num_unchanged = chains.load(asked);
    tree.follow(chains.chain(), num_unchanged, path);
    const int64_t cached = cache.admit(path, num_unchanged, static_cast<uint32_t>(asked + 1));
    result.hit_tokens.push_back(chains.hit_tokens(cached, chains.prompt_tokens()));
    result.prompt_tokens.push_back(chains.prompt_tokens());
  }
  return result;
}

}  // namespace vllm_relational
