#include <algorithm>
#include <limits>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "replay/block_tree.h"
#include "replay/replay_policies.h"

// Why no block is looked up in the second pass: the blocks whose next use is request r all lie on the path of r, and
// they go from the deep end, so what stays of them is told by their number. At request r every cached block of its
// path has r as its next use; their number is the request's hits. Blocks without a next use only take room.

namespace vllm_relational {
namespace {

using Node = BlockTree::Node;
constexpr uint32_t kNever = std::numeric_limits<uint32_t>::max();

// Some blocks of one request whose next use is the same.
struct Reuse {
  uint32_t next_request;  // kNever: none
  uint32_t num_blocks;
};

// ------------------------------------------------------------------------------------------------------ first pass
// The last block of every request, and per request when its blocks are used next.
class Future {
 public:
  Future(const BlockTree& tree, const std::vector<Node>& last_blocks)
      : tree_(tree), next_use_(tree.size(), kNever), first_(last_blocks.size() + 1) {
    for (size_t request = last_blocks.size(); request-- > 0;) {
      first_[request] = reuses_.size();
      read_request(static_cast<uint32_t>(request), last_blocks);
    }
  }

  // From the deepest blocks to the first ones; next uses never rise.
  std::span<const Reuse> reuses(size_t request) const {
    const size_t end = request == 0 ? reuses_.size() : first_[request - 1];
    return {reuses_.data() + first_[request], end - first_[request]};
  }

 private:
  // next_use_ holds for all blocks but those of the request after, whose next use is that request. Climbs from the
  // ends of both paths to where they meet.
  void read_request(uint32_t request, const std::vector<Node>& last_blocks) {
    const uint32_t after = request + 1;
    Node node = last_blocks[request];
    Node other = after < last_blocks.size() ? last_blocks[after] : BlockTree::kRoot;
    while (node != other) {
      const uint32_t depth = tree_.depth(node), other_depth = tree_.depth(other);
      if (depth >= other_depth) {
        add(request, next_use_[node], 1);
        node = tree_.parent(node);
      }
      if (other_depth >= depth) {
        next_use_[other] = after;
        other = tree_.parent(other);
      }
    }
    if (node != BlockTree::kRoot) add(request, after, tree_.depth(node));
  }

  void add(uint32_t request, uint32_t next_request, uint32_t num_blocks) {
    if (reuses_.size() > first_[request] && reuses_.back().next_request == next_request) {
      reuses_.back().num_blocks += num_blocks;
    } else {
      reuses_.push_back({next_request, num_blocks});
    }
  }

  const BlockTree& tree_;
  std::vector<uint32_t> next_use_;
  std::vector<Reuse> reuses_;   // of the last request first
  std::vector<size_t> first_;  // by request, into reuses_
};

// ----------------------------------------------------------------------------------------------------- second pass
class BeladyCache {
 public:
  BeladyCache(size_t num_requests, int64_t capacity)
      : capacity_(capacity), num_cached_(num_requests, 0), queued_(num_requests, false) {}

  // Serves a request with that many blocks; returns how many of them were cached.
  int64_t admit(uint32_t request, int64_t num_blocks, std::span<const Reuse> reuses) {
    const int64_t hits = std::exchange(num_cached_[request], 0);
    num_others_ -= hits;
    evict(num_others_ + num_blocks - capacity_);
    for (const Reuse& reuse : reuses) add(reuse);
    num_others_ += num_blocks;
    return hits;
  }

 private:
  void add(const Reuse& reuse) {
    if (reuse.next_request == kNever) {
      num_never_ += reuse.num_blocks;
      return;
    }
    num_cached_[reuse.next_request] += reuse.num_blocks;
    if (queued_[reuse.next_request]) return;
    queued_[reuse.next_request] = true;
    queue_.push(reuse.next_request);
  }

  // The request's own blocks are not among those counted here.
  void evict(int64_t num_blocks) {
    const int64_t unused = std::min(std::max<int64_t>(num_blocks, 0), num_never_);
    num_never_ -= unused;
    num_others_ -= unused;
    for (num_blocks -= unused; num_blocks > 0 && !queue_.empty();) {
      int64_t& farthest = num_cached_[queue_.top()];
      const int64_t gone = std::min(num_blocks, farthest);
      farthest -= gone;
      num_others_ -= gone;
      num_blocks -= gone;
      if (farthest > 0) continue;
      queued_[queue_.top()] = false;
      queue_.pop();
    }
  }

  int64_t capacity_;
  int64_t num_others_ = 0;             // blocks in the cache, less those of the request at hand
  int64_t num_never_ = 0;              // those without a next use
  std::vector<int64_t> num_cached_;    // by request: those whose next use it is
  std::vector<bool> queued_;           // by request: whether queue_ holds it
  std::priority_queue<uint32_t> queue_;
};

}  // namespace

ReplayResult replay_belady(BlockChains& chains, size_t num_requests, int64_t capacity_blocks, const Limits& limits) {
  BlockTree tree(limits);
  std::vector<Node> path, last_blocks;
  ReplayResult result;
  for (size_t asked = 0; asked < num_requests; ++asked) {
    const size_t num_unchanged = chains.load(asked);
    tree.follow(chains.chain(), num_unchanged, path);
    last_blocks.push_back(path.empty() ? BlockTree::kRoot : path.back());
    result.prompt_tokens.push_back(chains.prompt_tokens());
  }
  const Future future(tree, last_blocks);
  BeladyCache cache(num_requests, capacity_blocks);
  for (size_t asked = 0; asked < num_requests; ++asked) {
    const auto request = static_cast<uint32_t>(asked);
    const int64_t cached = cache.admit(request, tree.depth(last_blocks[asked]), future.reuses(asked));
    result.hit_tokens.push_back(chains.hit_tokens(cached, result.prompt_tokens[asked]));
  }
  return result;
}

}  // namespace vllm_relational
