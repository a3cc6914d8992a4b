#pragma once

#include <cstdint>

#include "../common/executor.h"
#include "../common/macros.h"

// Top-k LISTA without torch: sizes, pointers, launchers. Legend: E experts, B rows, d input size, m atoms,
// K code width (largest k), T number of steps after the first code. Formulas: README.md in this folder.
namespace stratcore::topk_lista {

enum class Form : int32_t { kClassic, kCoupled };

// How products with codes are made: by dense matrix products, or by rows gathered at the kept entries.
enum class Regime : int32_t { kAuto, kDense, kGather };

struct Sizes {
  int64_t experts, rows, dim, atoms, width, num_steps;
  const int64_t* k;  // [E], 1 <= k[e] <= width <= atoms; host memory
  Form form;
  bool shared_input;        // x is [1, B, d] for all experts instead of [E, B, d]
  bool encoder_per_step;    // encoder has T + 1 leading entries instead of 1
  bool recurrent_per_step;  // recurrent has T leading entries instead of 1
  bool threshold_per_step;  // theta has T + 1 leading entries instead of 1
  DType dtype;  // of x, encoder, recurrent and the dense code; all else is float64 for float64, else float32
  Regime regime = Regime::kAuto;
  // Where groups of rows share experts, E counts groups, and their parameters have been gathered. The expert
  // of each group, on the device, in [0, group_experts), which are the entries of k; null otherwise.
  const int32_t* group_expert = nullptr;
  int64_t group_experts = 0;

  int64_t k_of(int64_t expert) const { return k[group_expert ? group_expert[expert] : expert]; }
  int64_t recurrent_size() const { return form == Form::kClassic ? atoms * atoms : dim * atoms; }
};

struct Parameters {
  const void* x;          // [1 or E, B, d]
  const void* encoder;    // [1 or T + 1, E, m, d]
  const void* recurrent;  // classic: S [1 or T, E, m, m]; coupled: D [1 or T, E, d, m]
  const void* theta;      // [1 or T + 1, E, m]
};

struct Codes {
  void* dense;       // [E, B, m] code of the last step; also the working code of the recurrence; null is
                     // allowed where rows are gathered
  void* values;      // [T + 1, E, B, K]
  int32_t* indices;  // [T + 1, E, B, K], ascending; beyond k[e]: unused indices with value 0
  int8_t* support;   // [T + 1, E, B, m] sign(u) where |u| > theta, else 0; null when not asked for
};

// Those of x, encoder and recurrent and of the dense code are of Sizes::dtype, the others as computed.
struct Gradients {
  const void* codes;   // [E, B, m] with respect to Codes::dense, or null
  const void* values;  // [T + 1, E, B, K] with respect to Codes::values, or null
  void* x;             // [1 or E, B, d] or null when not asked for; likewise below
  void* encoder;       // shapes of the parameters
  void* recurrent;
  void* theta;
};

// Atoms up to which rows of 16-bit codes can be selected on the GPU.
constexpr int64_t kMostAtomsOf16Bits = 16384;

// Experts that groups of rows can share on the GPU: their k travel as arguments of one launch.
constexpr int64_t kMostGroupExperts = 256;

// Atoms for each kept one from which gathering beats dense products on a GPU: where the rows that are
// gathered come from its cache (those of D in strips, those of an S of at most so many bytes), and where they
// do not. A masked backward has sparse gradients as well. Measured, see README.md.
constexpr int64_t kGatherRatio = 96, kFarGatherRatio = 200, kMaskedGatherRatio = 32, kNearBytes = 80 << 20;

// The same on a CPU.
constexpr int64_t kCpuGatherRatio = 4;

// Entries that the kernel of long rows keeps at most; 0 for rows that it does not take.
constexpr int64_t most_wide_width(int64_t atoms) {
  if (atoms <= 1024 || atoms > 16384 || atoms % 8 != 0) return 0;
  return atoms <= 2048 ? 64 : atoms <= 4096 ? 128 : 256;
}

// Whether a forward or backward of such sizes gathers, on a GPU: in float32 or less, the forward where the
// kernel of long rows takes them.
STRATCORE_API bool gathers_forward(const Sizes& sizes);
STRATCORE_API bool gathers_backward(const Sizes& sizes, bool straight_through);

// The same on a CPU, for both: in float32.
STRATCORE_API bool gathers_on_cpu(const Sizes& sizes);

// Elements of scratch (of the computed type) that forward and backward on the CPU want; bytes on the GPU.
STRATCORE_API int64_t forward_scratch(const Sizes& sizes);
STRATCORE_API int64_t backward_scratch(const Sizes& sizes);
STRATCORE_API int64_t forward_scratch_cuda(const Sizes& sizes);
STRATCORE_API int64_t backward_scratch_cuda(const Sizes& sizes, bool straight_through);

STRATCORE_API Status forward_cpu(const Sizes& sizes, const Parameters& in, const Codes& out, void* scratch,
                                 const Executor& executor);
STRATCORE_API Status forward_cuda(const Sizes& sizes, const Parameters& in, const Codes& out, void* scratch,
                                  const Executor& executor);

// `signs` [E, B, m] is scratch for the support of a masked backward that does not gather; null otherwise.
// codes.support selects the straight-through backward.
STRATCORE_API Status backward_cpu(const Sizes& sizes, const Parameters& in, const Codes& codes,
                                  const Gradients& gradients, void* scratch, int8_t* signs,
                                  const Executor& executor);
STRATCORE_API Status backward_cuda(const Sizes& sizes, const Parameters& in, const Codes& codes,
                                   const Gradients& gradients, void* scratch, int8_t* signs,
                                   const Executor& executor);

// Parameters [outer, experts, inner] of `dtype` for the groups of an expert each: [outer, E, inner].
struct Grouping {
  DType dtype;
  const int32_t* expert;  // [E], each in [0, experts)
  int64_t groups, experts, outer, inner;
};

STRATCORE_API Status gather_groups_cpu(const Grouping& grouping, const void* parameter, void* gathered,
                                       const Executor& executor);
STRATCORE_API Status gather_groups_cuda(const Grouping& grouping, const void* parameter, void* gathered,
                                        const Executor& executor);

// The transpose: sums over the groups of each expert, in their order and in the computed type.
STRATCORE_API Status add_groups_cpu(const Grouping& grouping, const void* gathered, void* parameter,
                                    const Executor& executor);
STRATCORE_API Status add_groups_cuda(const Grouping& grouping, const void* gathered, void* parameter,
                                     const Executor& executor);

// The fused pass of one step: u = first + second, h = h_theta(u), then the k largest |h| of each row.
struct Selection {
  const void* first;   // [E, B, m]
  const void* second;  // [E, B, m] or null
  const void* theta;   // [E, m] or null for no threshold
  void* dense;         // [E, B, m]; may be `first`
  void* values;        // [E, B, K]
  int32_t* indices;    // [E, B, K]
  int8_t* support;     // [E, B, m] or null
};

STRATCORE_API Status select_cpu(const Sizes& sizes, const Selection& selection, const Executor& executor);
STRATCORE_API Status select_cuda(const Sizes& sizes, const Selection& selection, const Executor& executor);

}  // namespace stratcore::topk_lista
