//! The program `stolon-keeper`.

use std::process::ExitCode;
use stolon::cli::KEEPER_PREFIX;
use stolon::keeper::{self, args::Args};

fn main() -> ExitCode {
    let args: Args = common::cli::parse(&[KEEPER_PREFIX]);
    args.common.start_logging();
    common::exit::report(keeper::main(&args))
}
