# Writes a C++ file whose function NAME returns files by name, without their includes, as
# mlx_opt::gpu::Texts:
#   cmake -DOUT=file.cpp -DNAME=namespace::function -DFILES=a.h,b.h -P embed_texts.cmake
string(REPLACE "," ";" files "${FILES}")
set(entries "")
foreach(file IN LISTS files)
  file(READ ${file} content)
  string(REGEX REPLACE "#(pragma once|include [^\n]*)\n" "" content "${content}")
  cmake_path(GET file FILENAME name)
  string(APPEND entries "      {\"${name}\", R\"text(${content})text\"},\n")
endforeach()
string(REGEX MATCH "^(.*)::([^:]*)$" matched "${NAME}")
file(WRITE ${OUT} "#include \"mlx_opt/backend/gpu/texts.h\"

namespace ${CMAKE_MATCH_1} {

const gpu::Texts& ${CMAKE_MATCH_2}() {
  static const gpu::Texts files = {
${entries}  };
  return files;
}

} // namespace ${CMAKE_MATCH_1}
")
