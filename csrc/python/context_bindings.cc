// The context search for Python: checks the arguments, releases the GIL, calls the library, hands the result back.
#include "context/attend.h"
#include "python/context_arguments.h"

using namespace context_arguments;

namespace {

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

void bind_context_indexes(nb::module_& m);  // context_index_bindings.cc

void bind_context_search(nb::module_& m) {
  bind_context_indexes(m);
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
