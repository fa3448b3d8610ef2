//! Loads, attaches and pins weir's eBPF programs and reconciles their maps with a desired table.
