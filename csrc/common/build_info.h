#pragma once

#include "macros.h"

// How the library was built, one `key: value` a line. C linkage: stratcore.info reads it where torch is
// absent.
extern "C" STRATCORE_API const char* stratcore_build_description();
