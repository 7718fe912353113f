// What searches find: of every query head the tokens that it keeps.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "context/kernels.h"
#include "context/rows.h"

namespace vllm_relational::context {

// Of head h the tokens and scores in [offsets[h], offsets[h + 1]), ascending by token.
struct Hits {
  std::vector<int64_t> offsets;
  std::vector<int32_t> tokens;
  std::vector<float> scores;
  int64_t visited = 0;  // keys whose scores were computed; of heads apart, each counts
};

// What one head has found so far, and the least score that can still be kept. A NaN score is kept, and counts for no
// maximum: whoever attends to it gets NaN, as from all tokens.
class Finds {
 public:
  // A tile of scores that lie at out + h * kTile for this head.
  void add(const Kernels& loops, const float* scores, const RowSet& which, std::vector<int32_t>& places) {
    const int32_t found = loops.select(scores, static_cast<int32_t>(which.count), threshold_, places.data());
    const int32_t* const at = places.data();
    for (int32_t i = 0; i < found; ++i) found_.emplace_back(static_cast<int32_t>(which[at[i]]), scores[at[i]]);
    if (found > 0) settle();
  }

  float threshold() const { return threshold_; }
  size_t size() const { return found_.size(); }

 protected:
  virtual void settle() = 0;  // after a tile of which something was kept
  ~Finds() = default;

  float threshold_ = -std::numeric_limits<float>::infinity();
  std::vector<std::pair<int32_t, float>> found_;
};

// Keys whose score is at most beta below the greatest, which is at least `lower`.
class WithinBeta final : public Finds {
 public:
  WithinBeta(float beta, float lower) : beta_(beta), best_(lower) { threshold_ = best_ - beta_; }

  // What was known elsewhere: a score that a key in range has, or the window.
  void raise(float best) {
    if (best > best_) best_ = best;
    threshold_ = best_ - beta_;
  }
  float best() const { return best_; }
  void finish(Hits& hits);

 private:
  void settle() override;

  float beta_;
  float best_;
  size_t seen_ = 0;
};

// The k keys with the greatest scores; NaN is greater than all, of equal ones the first tokens come first.
class Greatest final : public Finds {
 public:
  explicit Greatest(size_t k) : k_(k) { if (k == 0) threshold_ = std::numeric_limits<float>::infinity(); }
  void finish(Hits& hits);

  // The k-th greatest so far; -inf where fewer were seen.
  float last();

 private:
  void settle() override;
  void cut();

  size_t k_;
};

}  // namespace vllm_relational::context
