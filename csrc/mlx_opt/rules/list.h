// Every rule of the library. A new rule is one header and one line here.
#pragma once
#include "adadelta.h"
#include "adafactor.h"
#include "adagrad.h"
#include "adamax.h"
#include "adamw.h"
#include "ademamix.h"
#include "lion.h"
#include "muon.h"
#include "rmsprop.h"
#include "sgd.h"
#include "signum.h"

// Those that update each element from its own gradient and state alone.
#define MLX_OPT_FOR_EACH_RULE(RULE) \
  RULE(AdaDelta)                    \
  RULE(Adagrad)                     \
  RULE(Adamax)                      \
  RULE(AdamW)                       \
  RULE(AdEMAMix)                    \
  RULE(Lion)                        \
  RULE(Momentum)                    \
  RULE(Muon)                        \
  RULE(Nesterov)                    \
  RULE(RMSprop)                     \
  RULE(SGD)                         \
  RULE(Signum)

// Those that look at whole tensors.
#define MLX_OPT_FOR_EACH_TENSOR_RULE(RULE) RULE(Adafactor)
