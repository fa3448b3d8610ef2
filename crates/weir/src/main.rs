//! One binary: gateway, map server, controller, lab and the commands a person types.

fn main() {}
