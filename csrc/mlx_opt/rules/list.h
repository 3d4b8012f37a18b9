// Every rule of the library. A new rule is one header and one line here.
#pragma once
#include "adadelta.h"
#include "adagrad.h"
#include "adamax.h"
#include "adamw.h"
#include "lion.h"
#include "muon.h"
#include "rmsprop.h"
#include "sgd.h"

#define MLX_OPT_FOR_EACH_RULE(RULE) \
  RULE(AdaDelta)                    \
  RULE(Adagrad)                     \
  RULE(Adamax)                      \
  RULE(AdamW)                       \
  RULE(Lion)                        \
  RULE(Momentum)                    \
  RULE(Muon)                        \
  RULE(Nesterov)                    \
  RULE(RMSprop)                     \
  RULE(SGD)
