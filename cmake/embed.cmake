# Writes a C++ file that holds the text of other files, one behind the other without their includes:
#   cmake -DOUT=file.cpp -DNAME=namespace::variable -DFILES=a.h,b.h -P embed.cmake
string(REPLACE "," ";" files "${FILES}")
set(text "")
foreach(file IN LISTS files)
  file(READ ${file} content)
  string(REGEX REPLACE "#(pragma once|include [^\n]*)\n" "" content "${content}")
  string(APPEND text "${content}")
endforeach()
string(REGEX MATCH "^(.*)::([^:]*)$" matched "${NAME}")
file(WRITE ${OUT} "namespace ${CMAKE_MATCH_1} {
extern const char* const ${CMAKE_MATCH_2};
const char* const ${CMAKE_MATCH_2} = R\"text(${text})text\";
} // namespace ${CMAKE_MATCH_1}
")
