//! Weights from offered load and capacity: the decision and its explanation.
#![no_std]
#![forbid(unsafe_code)]
