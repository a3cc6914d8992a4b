// ctest of the torch-free part, on every instruction set: closed forms, ties, degenerate rows, and the
// backward against finite differences.
#include "tangent_projection.h"

#include <cmath>
#include <limits>
#include <vector>

#include "../common/test.h"

using namespace stratcore;
using namespace stratcore::test;
using namespace stratcore::tangent_projection;

namespace {

template <class T>
struct Run {
  int32_t threads = 2;
  Executor executor = host_executor(&threads);
  Problem problem{};
  std::vector<T> x, anchors, y, norm, cosine, grad_x;
  std::vector<int32_t> nearest;

  Run(std::vector<T> x_, std::vector<T> anchors_, int64_t dim)
      : x(std::move(x_)), anchors(std::move(anchors_)) {
    const size_t rows = x.size() / dim;
    problem.element = sizeof(T) == 8 ? Element::kFloat64 : Element::kFloat32;
    problem.rows = rows;
    problem.dim = dim;
    problem.anchor_count = anchors.size() / dim;
    problem.eps = 1e-12;
    problem.tangential = 1;
    y.resize(x.size());
    grad_x.resize(x.size());
    norm.resize(rows);
    cosine.resize(rows);
    nearest.resize(rows);
  }

  Output out() { return {y.data(), norm.data(), nearest.data(), cosine.data()}; }

  void forward() {
    problem.x = x.data();
    problem.anchors = anchors.data();
    forward_cpu(problem, out(), executor);
  }

  void backward(const std::vector<T>& grad_y) {
    backward_cpu(problem, out(), grad_y.data(), grad_x.data(), executor);
  }
};

void test_known_values() {
  Run<float> run({3, 4, /**/ 0, 0, /**/ -2, 0}, {0, 7, /**/ 5, 0, /**/ 0, 0.5f, /**/ 0, 0}, 2);
  run.forward();
  expect(std::abs(run.y[0] - 0.6f) < 1e-7f && std::abs(run.y[1] - 0.8f) < 1e-7f, "normalized row");
  expect(run.norm == std::vector<float>({5, 0, 2}), "norms");
  // (0, 7) and (0, .5) are one direction: the lower index; the zero anchor has cosine 0, as has all of row 1
  expect(run.nearest == std::vector<int32_t>({0, 0, 0}), "nearest anchors");
  expect(std::abs(run.cosine[0] - 0.8f) < 1e-6f && run.cosine[1] == 0 && run.cosine[2] == 0, "cosines");
}

// The columns that fill up the last panel must not win over an anchor that lies behind the row.
void test_anchor_behind() {
  Run<float> run({-2, 0}, {3, 0}, 2);
  run.forward();
  expect(run.nearest[0] == 0 && run.cosine[0] == -1, "an anchor behind the row");
}

// Copies of one anchor over several panels and tiles: the first must win for every row.
template <class T>
void test_equal_anchors_tie_exactly() {
  constexpr int64_t kDim = 37, kRows = 101, kAnchors = 75;
  const std::vector<T> one = random_values<T>(kDim, 1);
  std::vector<T> anchors(kDim, T(0));
  for (int64_t d = 0; d < kDim; ++d) anchors[d] = -one[d];
  for (int64_t anchor = 1; anchor < kAnchors; ++anchor) {
    anchors.insert(anchors.end(), one.begin(), one.end());
  }
  std::vector<T> x = random_values<T>(kRows * kDim, 2);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t d = 0; d < kDim; ++d) x[row * kDim + d] = T(0.3) * x[row * kDim + d] + one[d];
  }
  Run<T> run(x, anchors, kDim);
  run.forward();
  for (const int32_t index : run.nearest) expect(index == 1, "lowest of equal anchors");
}

template <class T>
void test_not_finite() {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  Run<T> run({3, 4, /**/ nan, 1, /**/ 1, 0}, {0, 1, /**/ 1, 0}, 2);
  run.forward();
  run.backward({1, 1, 1, 1, 1, 1});
  expect(std::isnan(run.y[2]) && std::isnan(run.y[3]) && std::isnan(run.cosine[1]), "NaN fills its row");
  expect(run.nearest == std::vector<int32_t>({0, 0, 1}), "rows beside a NaN");
  expect(std::isnan(run.grad_x[2]) && std::isfinite(run.grad_x[0]) && std::isfinite(run.grad_x[5]),
         "gradients beside a NaN");
  Run<T> other({3, 4}, {0, 1, /**/ nan, 0, /**/ 1, 0, /**/ nan, nan}, 2);
  other.forward();
  expect(other.nearest[0] == 1 && std::isnan(other.cosine[0]), "a NaN anchor shows");
}

// separation 0 and 'normalize': the derivative of y, also below eps.
void test_backward_is_the_gradient(double eps) {
  constexpr int64_t kDim = 7;
  constexpr double kStep = 1e-6;
  Run<double> run(random_values<double>(3 * kDim, 3), {}, kDim);
  run.problem.jacobian = Jacobian::kNormalize;
  run.problem.eps = eps;
  // below eps the row is only scaled: there the tangential part is no derivative
  run.problem.tangential = eps > 1 ? 0 : 1;
  const std::vector<double> weights = random_values<double>(3 * kDim, 4);
  run.forward();
  run.backward(weights);
  const auto loss = [&] {
    double sum = 0;
    run.forward();
    for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * run.y[i];
    return sum;
  };
  for (size_t i = 0; i < run.x.size(); ++i) {
    const double kept = run.x[i];
    run.x[i] = kept + kStep;
    const double above = loss();
    run.x[i] = kept - kStep;
    const double below = loss();
    run.x[i] = kept;
    expect(std::abs((above - below) / (2 * kStep) - run.grad_x[i]) < 1e-8, "gradient of x");
  }
}

// A step against g'' leaves the anchor with 'repel'; 'reference' takes g'.n out of the gradient.
void test_separation() {
  Run<double> run({3, 4}, {0, 2}, 2);
  run.problem.separation = 0.5;
  run.problem.jacobian = Jacobian::kIdentity;
  run.forward();
  run.backward({0, 0});
  // 0.5 (n - c y), c = 0.8
  expect(std::abs(run.grad_x[0] + 0.24) < 1e-15 && std::abs(run.grad_x[1] - 0.18) < 1e-15, "repel");
  run.problem.sign = SeparationSign::kReference;
  run.backward({-0.8, 0.6});  // tangential already; g.n = 0.6
  expect(std::abs(run.grad_x[0] + 0.8) < 1e-15 && std::abs(run.grad_x[1] - 0.3) < 1e-15, "reference");
  run.backward({0.8, -0.6});
  expect(std::abs(run.grad_x[0] - 0.8) < 1e-15 && std::abs(run.grad_x[1] + 0.6) < 1e-15,
         "no relu, no change");
}

}  // namespace

int main() {
  on_every_instruction_set([] {
    test_known_values();
    test_anchor_behind();
    test_equal_anchors_tie_exactly<float>();
    test_equal_anchors_tie_exactly<double>();
    test_not_finite<float>();
    test_not_finite<double>();
    test_backward_is_the_gradient(1e-12);
    test_backward_is_the_gradient(100.0);
    test_separation();
  });
  return summary();
}
