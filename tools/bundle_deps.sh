#!/usr/bin/env bash
# Packs the libraries that Octet is built with into .deps/, so that it builds where nothing but a compiler, CMake and
# Ninja is installed:  cmake --preset release -DOCTET_BUNDLED_DEPS=ON
# Headers, and the static forms of the two libraries that have code of their own; they want the C library and compiler
# of this machine or newer ones. MPI is not among them: such a build runs one rank.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly most_mib=40
deps=.deps
new=$deps.new
rm -rf "$new"
trap 'rm -rf "$new"' EXIT
mkdir -p "$new/include" "$new/lib"

# first PATH...: the first of these that exists.
first() {
  for path in "$@"; do
    if [ -e "$path" ]; then
      echo "$path"
      return
    fi
  done
  echo "bundle_deps: none of these is here: $*" >&2
  echo "bundle_deps: tools/setup.sh installs what is missing" >&2
  exit 2
}
for header in yaml-cpp spdlog fmt nlohmann CLI catch2 xxhash.h pcre2.h; do
  cp -r "$(first {/usr/local/include,/usr/include}/$header)" "$new/include/"
done
eigen=$(first {/usr/local/include,/usr/include}/eigen3)
mkdir -p "$new/include/eigen3"
cp -r "$eigen/Eigen" "$new/include/eigen3/"
libraries=({/usr/local/lib,/usr/lib/x86_64-linux-gnu,/usr/lib64,/usr/lib})
for library in libyaml-cpp.a libpcre2-8.a; do
  cp "$(first "${libraries[@]/%//$library}")" "$new/lib/"
done

cat >"$new/deps.cmake" <<'CMAKE'
# Written by tools/bundle_deps.sh; included by the root CMakeLists.txt in place of its find_package calls.
function(bundled_library name)
  cmake_parse_arguments(ARG "" "ARCHIVE;INCLUDE" "DEFINITIONS;LINKS" ${ARGN})
  if(ARG_ARCHIVE)
    add_library(${name} STATIC IMPORTED GLOBAL)
    set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/lib/${ARG_ARCHIVE})
  else()
    add_library(${name} INTERFACE IMPORTED GLOBAL)
  endif()
  target_include_directories(${name} SYSTEM INTERFACE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/include${ARG_INCLUDE})
  target_compile_definitions(${name} INTERFACE ${ARG_DEFINITIONS})
  target_link_libraries(${name} INTERFACE ${ARG_LINKS})
endfunction()
bundled_library(fmt::fmt DEFINITIONS FMT_HEADER_ONLY=1)
# nvcc takes what fmt does with a long double for device code.
target_compile_options(fmt::fmt INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-diag-suppress=20208>)
bundled_library(spdlog::spdlog DEFINITIONS SPDLOG_FMT_EXTERNAL LINKS fmt::fmt)
bundled_library(yaml-cpp ARCHIVE libyaml-cpp.a)
bundled_library(nlohmann_json::nlohmann_json)
bundled_library(Eigen3::Eigen INCLUDE /eigen3)
bundled_library(CLI11::CLI11)
bundled_library(Catch2::Catch2)
bundled_library(PkgConfig::PCRE2 ARCHIVE libpcre2-8.a)
bundled_library(PkgConfig::XXHASH)
CMAKE

mib=$(du -sm "$new" | cut -f1)
if [ "$mib" -gt "$most_mib" ]; then
  echo "bundle_deps: $mib MiB; wanted at most $most_mib" >&2
  exit 2
fi
rm -rf "$deps"
mv "$new" "$deps"
echo "bundle_deps: $mib MiB in $deps"
