# embed_texts(OUTPUT file.cpp NAME namespace::function FILES ...) makes a C++ file whose function
# returns the texts of a backend's kernels by the names of their files: the rules' and its own FILES.
function(embed_texts)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "OUTPUT;NAME" "FILES")
  set(folder ${PROJECT_SOURCE_DIR}/csrc/mlx_opt)
  file(GLOB rules CONFIGURE_DEPENDS ${folder}/rules/*.h)
  list(FILTER rules EXCLUDE REGEX "/(composed|list|registry)\\.h$")
  set(texts ${rules} ${folder}/step/scaling.h ${arg_FILES})
  list(JOIN texts "," joined_texts)
  set(script ${PROJECT_SOURCE_DIR}/cmake/embed_texts.cmake)
  add_custom_command(
    OUTPUT ${arg_OUTPUT}
    COMMAND ${CMAKE_COMMAND} -DOUT=${arg_OUTPUT} -DNAME=${arg_NAME} -DFILES=${joined_texts} -P
            ${script}
    DEPENDS ${texts} ${script}
    VERBATIM)
endfunction()
