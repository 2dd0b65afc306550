//! The program `monitor`.

use monitor::cli::{Cli, PREFIXES};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli: Cli = common::cli::parse(&PREFIXES);
    common::logging::init(&cli.common.log);
    common::exit::report(common::runtime::block_on(monitor::main(cli)))
}
