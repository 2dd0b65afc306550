//! `shardmanctl`: see the library.

use shardmanctl::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli: Cli = common::cli::parse(&["HPCTL", common::cli::SDM_PREFIX]);
    common::logging::init(&cli.common.log);
    common::exit::report(common::runtime::block_on(shardmanctl::run(cli)))
}
