// Runs one call of the kernels that choose tokens and put them back.

#include "cuda/token_select.h"
#include "emulator.h"

namespace uk::shim {
namespace {

using namespace uk::cuda;

enum Operation : int64_t { kShrink, kShrinkBackward, kRecover, kRecoverBackward };

struct Request {
  int64_t B, N, K, P, C;
  int64_t strides[3][3];  // of up to three sequences: samples, rows, the first element's offset
  int64_t numbers[2][2];  // of importance and score: samples, the first element's offset
  double trade_off;
  int64_t bytes[6];  // of the sequences' storage, of importance, score and index
};

template <class S>
struct Call {
  const Request& r;
  Storage first, second, third, importance, score, index;
  TokenSizes sizes;

  explicit Call(const Request& r)
      : r(r),
        first(r.bytes[0]),
        second(r.bytes[1]),
        third(r.bytes[2]),
        importance(r.bytes[3]),
        score(r.bytes[4]),
        index(r.bytes[5]),
        sizes{r.B, static_cast<int>(r.N), static_cast<int>(r.K), static_cast<int>(r.P),
              static_cast<int>(r.C), true} {}

  // Whether the importance goes on; backward, it is its gradient that comes.
  bool averages() const { return r.bytes[3] > 0; }

  Rows<const S> rows(int i) {
    const Storage& storage = i == 0 ? first : i == 1 ? second : third;
    const auto& [sample, row, offset] = r.strides[i];
    const Rows<const S> rows{storage.template at<S>() + offset, sample, row};
    if (r.bytes[i] > 0) sizes.vectors = sizes.vectors && has_vectors(rows, r.C);
    return rows;
  }
};

template <class S>
Rows<S> rows_of(const Result<S>& result, int64_t rows, int64_t C) {
  return {result.data.get(), rows * C, C};
}

template <class S>
void run(int64_t operation, const Request& r) {
  Call<S> call(r);
  const Rows<const S> first = call.rows(0), second = call.rows(1), third = call.rows(2);
  const float* importance = call.importance.template at<float>() + r.numbers[0][1];
  const float* score = call.score.template at<float>() + r.numbers[1][1];
  const int64_t* index = call.index.template at<int64_t>();
  const int64_t tokens = r.P + r.K + 1;
  if (operation == kShrink) {
    Result<S> out(r.B * tokens * r.C);
    Result<int64_t> kept(r.B * r.K);
    start(Shrink<S>{call.sizes, first, second, importance, rows_of(out, tokens, r.C),
                    kept.data.get()},
          nullptr);
    out.write();
    kept.write();
  } else if (operation == kShrinkBackward) {
    Result<S> dx(r.B * r.N * r.C);
    Result<float> dimportance(r.B * r.N);
    start(ShrinkBackward<S>{call.sizes, first, second, importance, index, rows_of(dx, r.N, r.C),
                            dimportance.data.get()},
          nullptr);
    dx.write();
    dimportance.write();
  } else if (operation == kRecover) {
    Result<S> y(r.B * r.N * r.C);
    Result<float> updated(call.averages() ? r.B * r.N : 0);
    RunningMean mean{};
    if (call.averages())
      mean = {importance, score, r.numbers[0][0], r.numbers[1][0],
              static_cast<float>(r.trade_off), updated.data.get()};
    start(Recover<S>{call.sizes, first, second, third, index, rows_of(y, r.N, r.C), mean}, nullptr);
    y.write();
    updated.write();
  } else {
    Result<S> dx(r.B * r.N * r.C), dkept(r.B * r.K * r.C), ddelta(r.B * r.C);
    Result<float> dimportance(call.averages() ? r.B * r.N : 0);
    Result<float> dscore(call.averages() ? r.B * tokens : 0);
    RunningMeanBackward mean{};
    if (call.averages())
      mean = {importance, static_cast<float>(r.trade_off), static_cast<float>(1 - r.trade_off),
              dimportance.data.get(), dscore.data.get()};
    start(RecoverBackward<S>{call.sizes, first, index, rows_of(dx, r.N, r.C),
                             rows_of(dkept, r.K, r.C), rows_of(ddelta, 1, r.C), mean},
          nullptr);
    dx.write();
    dkept.write();
    ddelta.write();
    dimportance.write();
    dscore.write();
  }
}

}  // namespace

void run_tokens(int64_t operation, int64_t size) {
  const auto r = read<Request>();
  size == 4 ? run<float>(operation, r)
            : size == 2 ? run<bf16>(operation, r) : run<f16>(operation, r);
}

}  // namespace uk::shim
