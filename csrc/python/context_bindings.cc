// The context search for Python: checks the arguments, releases the GIL, calls the library, hands the result back.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "context/attend.h"
#include "context/scan.h"

namespace nb = nanobind;
namespace vc = vllm_relational::context;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

[[noreturn]] void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

// ------------------------------------------------------------------------------------------------------ arguments
void check_contiguous(const Array& array, const std::string& name, size_t num_dims) {
  if (array.ndim() != num_dims) {
    fail(name + " must have " + std::to_string(num_dims) + " dimension(s), not " + std::to_string(array.ndim()));
  }
  auto expected = int64_t{1};
  for (size_t d = num_dims; d-- > 0; expected *= static_cast<int64_t>(array.shape(d))) {
    if (array.shape(d) > 1 && array.size() > 0 && array.stride(d) != expected) fail(name + " must be C-contiguous");
  }
}

template <class T>
const T* elements(const Array& array, const std::string& name, size_t num_dims) {
  if (array.dtype() != nb::dtype<T>()) fail(name + " has elements of another type");
  check_contiguous(array, name, num_dims);
  return static_cast<const T*>(array.data());
}

vc::Number number_of(const Array& array, const std::string& name) {
  const nb::dlpack::dtype type = array.dtype();
  const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
  if (code == nb::dlpack::dtype_code::UInt && type.bits == 16) return vc::Number::kBf16;
  if (code == nb::dlpack::dtype_code::Float && type.bits == 16) return vc::Number::kF16;
  if (code == nb::dlpack::dtype_code::Float && type.bits == 32) return vc::Number::kF32;
  fail(name + " must be uint16 (bfloat16), float16 or float32");
}

vc::Rows rows_of(const Array& array, const std::string& name) {
  const vc::Number number = number_of(array, name);
  check_contiguous(array, name, 2);
  const auto count = static_cast<int64_t>(array.shape(0));
  const auto head_size = static_cast<int64_t>(array.shape(1));
  if (count > std::numeric_limits<int32_t>::max()) fail(name + " has 2^31 rows or more");
  if (head_size < 2 || head_size > vc::kMaxHeadSize || head_size % 2 != 0) {
    fail(name + ": the head size must be even, from 2 to " + std::to_string(vc::kMaxHeadSize) + ", not " +
         std::to_string(head_size));
  }
  return {static_cast<const std::byte*>(array.data()), count, static_cast<int32_t>(head_size), number};
}

vc::QueryHeads queries_of(const Array& array, int32_t head_size) {
  const auto* data = elements<float>(array, "queries", 2);
  if (static_cast<int64_t>(array.shape(1)) != head_size) fail("queries and keys have different head sizes");
  return {data, static_cast<int32_t>(array.shape(0))};
}

void check_range(int64_t start, int64_t stop, int64_t count) {
  if (start < 0 || stop < start || stop > count) {
    fail("tokens [" + std::to_string(start) + ", " + std::to_string(stop) + ") are not among the " +
         std::to_string(count) + " keys");
  }
}

void check_beta(float beta) {
  if (!(beta >= 0)) fail("beta must be 0 or greater, not " + std::to_string(beta));
}

const float* lower_of(const std::optional<Array>& lower, int32_t num_heads) {
  if (!lower) return nullptr;
  const auto* data = elements<float>(*lower, "lower", 1);
  if (static_cast<int64_t>(lower->shape(0)) != num_heads) fail("lower must have one number a query head");
  return data;
}

std::span<const int32_t> tokens_of(const Array& array, int64_t count) {
  const std::span<const int32_t> tokens{elements<int32_t>(array, "tokens", 1), array.shape(0)};
  for (const int32_t token : tokens) {
    if (token < 0 || token >= count) fail("token " + std::to_string(token) + " is not among the " + std::to_string(count) + " keys");
  }
  return tokens;
}

std::span<const int64_t> offsets_of(const Array& array, size_t num_tokens) {
  const std::span<const int64_t> offsets{elements<int64_t>(array, "offsets", 1), array.shape(0)};
  bool fits = !offsets.empty() && offsets.front() == 0 && offsets.back() == static_cast<int64_t>(num_tokens);
  for (size_t h = 0; fits && h + 1 < offsets.size(); ++h) fits = offsets[h] <= offsets[h + 1];
  if (!fits) fail("offsets must ascend from 0 to the number of tokens");
  return offsets;
}

// -------------------------------------------------------------------------------------------------------- results
template <class T>
nb::object to_numpy(std::vector<T>&& values, std::vector<size_t> shape = {}) {
  auto held = std::make_unique<std::vector<T>>(std::move(values));
  std::vector<T>* const raw = held.release();
  const nb::capsule owner(raw, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  if (shape.empty()) shape = {raw->size()};
  return nb::cast(nb::ndarray<nb::numpy, T>(raw->data(), shape.size(), shape.data(), owner));
}

nb::tuple to_python(vc::Hits&& hits) {
  const int64_t visited = hits.visited;
  return nb::make_tuple(to_numpy(std::move(hits.offsets)), to_numpy(std::move(hits.tokens)),
                        to_numpy(std::move(hits.scores)), visited);
}

// ---------------------------------------------------------------------------------------------------------- calls
std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const vc::NamedLevel& each : vc::kSimdLevels) {
    if (vc::has_level(each.level)) names.emplace_back(each.name);
  }
  return names;
}

nb::tuple scan_dipr(const Array& keys, const Array& queries, float beta, const std::optional<Array>& lower,
                    int64_t start, int64_t stop, const std::string& level) {
  const vc::Rows rows = rows_of(keys, "keys");
  const vc::QueryHeads heads = queries_of(queries, rows.head_size);
  check_range(start, stop, rows.count);
  check_beta(beta);
  const float* const least = lower_of(lower, heads.num_heads);
  const vc::SimdLevel simd = vc::level_named(level);
  vc::Hits hits;
  {
    const nb::gil_scoped_release release;
    hits = vc::scan_dipr(rows, start, stop, heads, beta, least, simd);
  }
  return to_python(std::move(hits));
}

nb::tuple scan_topk(const Array& keys, const Array& queries, int64_t k, int64_t start, int64_t stop,
                    const std::string& level) {
  const vc::Rows rows = rows_of(keys, "keys");
  const vc::QueryHeads heads = queries_of(queries, rows.head_size);
  check_range(start, stop, rows.count);
  if (k < 0) fail("k must be 0 or greater, not " + std::to_string(k));
  const vc::SimdLevel simd = vc::level_named(level);
  vc::Hits hits;
  {
    const nb::gil_scoped_release release;
    hits = vc::scan_topk(rows, start, stop, heads, k, simd);
  }
  return to_python(std::move(hits));
}

nb::object score_rows(const Array& keys, const Array& tokens, const Array& queries, const std::string& level) {
  const vc::Rows rows = rows_of(keys, "keys");
  const vc::QueryHeads heads = queries_of(queries, rows.head_size);
  const std::span<const int32_t> listed = tokens_of(tokens, rows.count);
  const vc::SimdLevel simd = vc::level_named(level);
  std::vector<float> out(static_cast<size_t>(heads.num_heads) * listed.size());
  {
    const nb::gil_scoped_release release;
    vc::scan_scores(rows, {0, listed.data(), static_cast<int64_t>(listed.size())}, heads, simd, out.data());
  }
  return to_numpy(std::move(out), {static_cast<size_t>(heads.num_heads), listed.size()});
}

nb::tuple attend(const Array& values, const Array& offsets, const Array& tokens, const Array& scores, float scale,
                 const std::string& level) {
  const vc::Rows rows = rows_of(values, "values");
  const std::span<const int32_t> listed = tokens_of(tokens, rows.count);
  const std::span<const int64_t> starts = offsets_of(offsets, listed.size());
  const auto* products = elements<float>(scores, "scores", 1);
  if (scores.shape(0) != listed.size()) fail("scores must have one number a token");
  const vc::SimdLevel simd = vc::level_named(level);
  const size_t num_heads = starts.size() - 1;
  std::vector<float> out(num_heads * static_cast<size_t>(rows.head_size)), lse(num_heads);
  {
    const nb::gil_scoped_release release;
    vc::attend(rows, starts, listed.data(), products, scale, simd, out.data(), lse.data());
  }
  return nb::make_tuple(to_numpy(std::move(out), {num_heads, static_cast<size_t>(rows.head_size)}),
                        to_numpy(std::move(lse)));
}

}  // namespace

void bind_context_search(nb::module_& m) {
  m.def("simd_levels", &simd_levels, "Names of the instructions that this processor has, from the least to the best.");
  m.def("scan_dipr", &scan_dipr, nb::arg("keys"), nb::arg("queries"), nb::arg("beta"), nb::arg("lower").none(),
        nb::arg("start"), nb::arg("stop"), nb::arg("level"),
        "Keys of a range at most beta below the greatest product: (offsets, tokens, scores, keys visited).");
  m.def("scan_topk", &scan_topk, nb::arg("keys"), nb::arg("queries"), nb::arg("k"), nb::arg("start"), nb::arg("stop"),
        nb::arg("level"), "The k keys of a range with the greatest products: (offsets, tokens, scores, keys visited).");
  m.def("score_rows", &score_rows, nb::arg("keys"), nb::arg("tokens"), nb::arg("queries"), nb::arg("level"),
        "Products of listed keys: float32 [num_heads, num_tokens].");
  m.def("attend", &attend, nb::arg("values"), nb::arg("offsets"), nb::arg("tokens"), nb::arg("scores"),
        nb::arg("scale"), nb::arg("level"),
        "Softmax over listed tokens: (out float32 [num_heads, head_size], lse float32 [num_heads]).");
}
