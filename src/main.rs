//! The program; everything is in the library, where tests and benches reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    mirror::cli::main()
}
