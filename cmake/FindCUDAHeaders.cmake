# CUDA's headers, of which the CUDA backend needs cuda.h and cuda_runtime.h: target cuda_headers.
# They are looked for in the packages nvidia-cuda-runtime and nvidia-cuda-crt of the Python
# interpreter and in an installed toolkit.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import nvidia, glob; print(';'.join(p for f in nvidia.__path__ for p in glob.glob(f + '/cu*/include')))"
  OUTPUT_VARIABLE packaged
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET)
set(CUDA_INCLUDE "" CACHE PATH "The folder of cuda_runtime.h, if it is not to be searched for")
set(folders ${CUDA_INCLUDE} ${packaged} $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include
            /usr/local/cuda/include)
foreach(folder IN LISTS folders)
  if(EXISTS ${folder}/cuda_runtime.h AND EXISTS ${folder}/crt/host_config.h)
    add_library(cuda_headers INTERFACE)
    target_include_directories(cuda_headers SYSTEM INTERFACE ${folder})
    break()
  endif()
endforeach()
if(NOT TARGET cuda_headers)
  message(
    FATAL_ERROR
      "CUDA's headers are missing: pip install nvidia-cuda-runtime nvidia-cuda-crt, "
      "or leave the CUDA backend out with -DMLX_OPT_CUDA=OFF")
endif()
