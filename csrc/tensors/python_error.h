#pragma once

namespace fastclip {

// A Python exception is set; module.cpp lets it through to the caller unchanged.
struct PythonError {};

}  // namespace fastclip
