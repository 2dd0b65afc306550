//! `ladle`: the placement planner's command line. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(args) = ladle::cli::parse() else { return ExitCode::SUCCESS };
    common::logging::init(&args.common.log);
    common::exit::report(common::runtime::block_on(ladle::cli::run(args)))
}
