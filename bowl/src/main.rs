//! The node agent `bowl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: bowl::cli::BowlArgs = common::cli::parse(&bowl::cli::PREFIXES);
    common::logging::init(&args.common.log);
    common::exit::report(bowl::run(args))
}
