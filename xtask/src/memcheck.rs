//! `cargo xtask memcheck`: the unit tests that touch unsafe code, under valgrind.
//!
//! In       the unsafe blocks of the product, [`UNSAFE`], each with the tests that reach it.
//! Out      a failed step if a test touches what is not its own, or uses what was never set.
//! Limits   valgrind knows no AVX-512 and hides it from the program, so that the lanes of SHA2-256
//!          do not run there: `ring` takes their place. Their one unsafe block is the call of a
//!          function without unsafe code after the processor was asked for its instructions; that
//!          it gives the right digests is tested where the processor has them.
//! Not here Miri and the sanitizers of rustc, which need a nightly compiler.

use crate::shell::{Result, Steps, cargo, find, run};

/// A file with unsafe code, and where its tests are: package and filter.
pub(crate) struct Unsafe {
    pub(crate) file: &'static str,
    package: &'static str,
    tests: &'static str,
}

/// Every file of the product with unsafe code; a test of the source text holds this complete.
pub(crate) const UNSAFE: [Unsafe; 2] = [
    Unsafe {
        file: "crates/formats/src/sha256/lanes.rs",
        package: "carrack-formats",
        tests: "sha256::",
    },
    Unsafe {
        file: "crates/carrack/src/store/index/segment.rs",
        package: "carrack",
        tests: "store::index::",
    },
];

/// Runs them all.
pub(crate) fn command() -> Result<bool> {
    let mut steps = Steps::default();
    if find("valgrind").is_none() {
        steps.leave_out("memcheck: valgrind is not installed");
        return Ok(steps.finish());
    }
    // What the tests leave allocated at their end is no error; anything else fails the run.
    let runner = "target.'cfg(all())'.runner = ['valgrind', '--quiet', '--error-exitcode=9', \
                  '--leak-check=no']";
    for Unsafe {
        file,
        package,
        tests,
    } in UNSAFE
    {
        steps.step(file, || {
            let test = ["test", "--lib", "--locked", "--package", package];
            run(cargo()
                .args(["--config", runner])
                .args(test)
                .args(["--", "--test-threads=1", tests])
                .env("PROPTEST_CASES", "8"))
        });
    }
    Ok(steps.finish())
}
