#include "launch.cuh"

namespace stratcore {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

int processors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

Status launch_status() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return kOk;
  last_error = error;
  return kLaunchFailed;
}

bool is_capturing(const Executor& executor) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream_of(executor), &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
}

const char* last_launch_error() { return cudaGetErrorString(last_error); }

}  // namespace stratcore
