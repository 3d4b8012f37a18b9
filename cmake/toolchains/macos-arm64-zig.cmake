# Builds for macOS 14 and later on arm64 under Linux, with zig and without Apple's SDK. MACOS_TOOLS is
# the folder that macos/prepare has filled; MLX is the macOS wheel in it.
set(MACOS_TOOLS "" CACHE PATH "The folder that cmake/toolchains/macos/prepare has filled")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MACOS_TOOLS)
if(NOT EXISTS ${MACOS_TOOLS}/bin/c++)
  message(FATAL_ERROR "-DMACOS_TOOLS= must name a folder that cmake/toolchains/macos/prepare has filled")
endif()

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_SYSTEM_VERSION 23.0.0)
set(CMAKE_OSX_ARCHITECTURES arm64 CACHE STRING "")
set(CMAKE_OSX_DEPLOYMENT_TARGET 14.0 CACHE STRING "")
set(CMAKE_OSX_SYSROOT "" CACHE STRING "")

set(CMAKE_C_COMPILER ${MACOS_TOOLS}/bin/cc)
set(CMAKE_CXX_COMPILER ${MACOS_TOOLS}/bin/c++)
set(CMAKE_AR ${MACOS_TOOLS}/bin/ar CACHE FILEPATH "")
set(CMAKE_RANLIB /bin/true CACHE FILEPATH "")
set(CMAKE_STRIP /bin/true CACHE FILEPATH "")
set(CMAKE_INSTALL_NAME_TOOL llvm-install-name-tool-19 CACHE FILEPATH "")
set(CMAKE_OTOOL llvm-otool-19 CACHE FILEPATH "")

# What CMake knows of Darwin only on Darwin.
set(CMAKE_SHARED_LIBRARY_CREATE_CXX_FLAGS -shared)
set(CMAKE_SHARED_MODULE_CREATE_CXX_FLAGS -shared)
# Without the symbols of a debugger, which name the object files.
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
set(CMAKE_SHARED_LIBRARY_RUNTIME_C_FLAG -Wl,-rpath,)
set(CMAKE_SHARED_LIBRARY_RUNTIME_CXX_FLAG -Wl,-rpath,)

set(MLX_ROOT ${MACOS_TOOLS}/mlx CACHE PATH "")
