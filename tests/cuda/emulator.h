// What comes in and goes out of the emulated kernels.
#pragma once

#include <cstdio>
#include <memory>

#include "shim.h"

namespace uk::shim {

template <class T>
T read() {
  T value;
  if (std::fread(&value, sizeof(T), 1, stdin) != 1) fail("expected more of the request");
  return value;
}

struct Storage {
  std::unique_ptr<char[]> data;
  explicit Storage(int64_t bytes) : data(bytes > 0 ? new char[bytes] : nullptr) {
    if (bytes > 0 && std::fread(data.get(), 1, bytes, stdin) != static_cast<size_t>(bytes))
      fail("expected more of the request");
  }
  template <class T>
  const T* at(int64_t offset = 0) const {
    return reinterpret_cast<const T*>(data.get() + offset);
  }
};

template <class T>
struct Result {
  std::unique_ptr<T[]> data;
  size_t count;
  explicit Result(int64_t count) : data(new T[count]), count(count) {
    std::memset(static_cast<void*>(data.get()), 0xff, count * sizeof(T));
  }
  void write() const { std::fwrite(data.get(), sizeof(T), count, stdout); }
};

// A request about tokens: emulator_tokens.cpp.
void run_tokens(int64_t operation, int64_t size);
// A request for tensor copies: emulator_copies.cpp.
void run_copies();

}  // namespace uk::shim
