// Every rule of the library. A new rule is one header and one line here.
#pragma once
#include "adabelief.h"
#include "adadelta.h"
#include "adafactor.h"
#include "adagrad.h"
#include "adam_atan2.h"
#include "adamax.h"
#include "adamw.h"
#include "adan.h"
#include "ademamix.h"
#include "adopt.h"
#include "diffgrad.h"
#include "lamb.h"
#include "laprop.h"
#include "lion.h"
#include "madgrad.h"
#include "muon.h"
#include "nadam.h"
#include "qhadam.h"
#include "radam.h"
#include "rmsprop.h"
#include "sgd.h"
#include "signsgd.h"
#include "signum.h"
#include "simplified_ademamix.h"
#include "yogi.h"

// Those that update each element from its own gradient and state alone.
#define MLX_OPT_FOR_EACH_RULE(RULE) \
  RULE(AdaBelief)                   \
  RULE(AdaDelta)                    \
  RULE(Adagrad)                     \
  RULE(AdamAMSGrad)                 \
  RULE(AdamAtan2)                   \
  RULE(Adamax)                      \
  RULE(AdamW)                       \
  RULE(AdamWVariant)                \
  RULE(Adan)                        \
  RULE(AdEMAMix)                    \
  RULE(ADOPT)                       \
  RULE(DiffGrad)                    \
  RULE(LaProp)                      \
  RULE(Lion)                        \
  RULE(MADGRAD)                     \
  RULE(Momentum)                    \
  RULE(Muon)                        \
  RULE(NAdam)                       \
  RULE(Nesterov)                    \
  RULE(QHAdam)                      \
  RULE(RAdam)                       \
  RULE(RMSprop)                     \
  RULE(SGD)                         \
  RULE(SignSGD)                     \
  RULE(Signum)                      \
  RULE(SimplifiedAdEMAMix)          \
  RULE(Yogi)

// Those of two passes over each tensor: the first takes the state's step and sums up over the
// tensor, the second updates the parameter with what the sums give.
#define MLX_OPT_FOR_EACH_TWO_PASS_RULE(RULE) RULE(Lamb)

// Those with drivers of their own.
#define MLX_OPT_FOR_EACH_TENSOR_RULE(RULE) RULE(Adafactor)
