//! stolon-sentinel: decides which keeper of a stolon cluster is master.

use std::process::ExitCode;
use stolon::cli::SENTINEL_PREFIX;
use stolon::sentinel::{SentinelArgs, run};

fn main() -> ExitCode {
    let args: SentinelArgs = common::cli::parse(&[SENTINEL_PREFIX]);
    args.common.start_logging();
    let left = common::privileges::leave_root();
    common::exit::report(left.and_then(|()| common::runtime::block_on(run(args))))
}
