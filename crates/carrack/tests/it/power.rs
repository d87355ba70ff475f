//! Power cuts: what was reported done is there after the next start, nothing wrong is served, the
//! next attempt finishes, and what is left over does not pile up.
//!
//! In       `CARRACK_POWER_ROUNDS` (cuts a flow, default [`ROUNDS`]), `CARRACK_POWER_SEED` (of the
//!          first cut, default 1; each further cut takes the next number).
//! Out      a failed test that names its flow, its seed, and what the disk was asked last. One cut
//!          is repeated by its seed and one round.
//! Limits   the data directory lies on `carrack_testkit::power`; what is added lies beside it.
//! Not here kills without a loss (`crash`), the model of the disk (`testkit`).

mod flows;
mod stage;

use carrack_testkit::power::{Call, Chance, Cut, Fault, Moment, Wrong};

use self::flows::{Flow, Promise};
use self::stage::{Ended, Stage};

/// Cuts a flow: about a minute for all of them on two cores.
const ROUNDS: u64 = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn rounds(flow: &Flow) -> u64 {
    number("CARRACK_POWER_ROUNDS", ROUNDS).div_ceil(flow.cost)
}

/// Tells, when the test fails, how to see it again.
struct Told<'a> {
    stage: &'a Stage,
    flow: &'a Flow,
    seed: u64,
    plan: String,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (name, seed, plan) = (self.flow.name, self.seed, &self.plan);
            eprintln!("--- {name}, seed {seed}: {plan}");
            eprintln!("{}", self.stage.mount.machine().trace());
        }
    }
}

/// Where the cut of a seed comes: at each sync in turn, or before any change.
fn cut_of(seed: u64, stage: &Stage, chance: &mut Chance) -> Cut {
    let counts = stage.calm.counts;
    if seed % 2 == 1 || counts.syncs == 0 {
        let n_changes = usize::try_from(counts.changes).unwrap();
        return Cut::Change(chance.below(n_changes + 1) as u64);
    }
    let (n, moments) = (seed / 2, [Moment::Before, Moment::During, Moment::After]);
    let moment = moments[usize::try_from(n % 3).unwrap()];
    Cut::Sync(n / 3 % counts.syncs, moment)
}

/// Cuts a flow again and again, each time from the same beginning.
fn a_cut_loses_nothing_that_was_reported(make: fn(&Stage) -> Flow) {
    let mut stage = Stage::new();
    let flow = make(&stage);
    stage.rehearse(&flow);
    let first = number("CARRACK_POWER_SEED", 1);
    let last = first + rounds(&flow) - 1;
    let (mut n_cut, mut n_reported) = (0, 0);
    for seed in flow.regressions.iter().copied().chain(first..=last) {
        let mut chance = Chance::new(seed);
        stage.begin(seed);
        let cut = cut_of(seed, &stage, &mut chance);
        let told = Told {
            stage: &stage,
            flow: &flow,
            seed,
            plan: format!("{cut:?}"),
        };
        stage.mount.machine().cut_at(Some(cut));
        let ended = stage.run_until_cut(&flow, &mut chance);
        n_cut += u64::from(stage.mount.machine().is_off());
        n_reported += u64::from(ended.is_reported);
        match chance.below(6) {
            // The process died alone, and what it had not synced still counts as done.
            0 => stage.mount.machine().resume(),
            1 | 2 => {
                stage.mount.machine().start_again();
                cut_while_recovering(&stage, &mut chance);
            }
            _ => drop(stage.mount.machine().start_again()),
        }
        everything_holds(&stage, &flow, &ended, chance.one_in(8));
        drop(told);
    }
    let (name, syncs, changes) = (
        flow.name,
        stage.calm.counts.syncs,
        stage.calm.counts.changes,
    );
    eprintln!(
        "{name}: seeds {first} to {last}, {n_cut} cuts in {syncs} syncs and {changes} changes, \
         {n_reported} reported done"
    );
    assert!(n_cut > 0, "{name}: no cut came");
}

/// The power goes again while the next start looks at what the first cut left.
fn cut_while_recovering(stage: &Stage, chance: &mut Chance) {
    let cut = match chance.one_in(2) {
        true => Cut::Change(chance.below(12) as u64),
        false => Cut::Sync(chance.below(6) as u64, Moment::During),
    };
    stage.mount.machine().cut_at(Some(cut));
    // Whatever becomes of it: it reports nothing.
    stage.carrack.run(&["ls"]);
    stage.mount.machine().start_again();
}

/// What was there is there; what was reported is; the next run finishes, and that lasts.
fn everything_holds(stage: &Stage, flow: &Flow, ended: &Ended, compare_bytes: bool) {
    if ended.is_reported {
        flow.holds(stage, &ended.words);
    }
    flow.old_holds(stage);
    let again = flow.run_again(stage, ended);
    flow.holds(stage, &again);
    // As if nobody had waited: what was reported needs no further sync.
    stage.mount.machine().start_again();
    flow.holds(stage, &again);
    flow.old_holds(stage);
    if compare_bytes {
        flow.bytes_hold(stage);
    }
    // What only reads removes nothing; the next command that writes does.
    flow.run_again(stage, &Ended::default());
    stage.nothing_piled_up(flow);
}

/// A process is killed before each of its syncs in turn and nothing else happens; what the next one
/// builds on what it finds, and reports, must outlast a cut.
fn a_kill_and_a_cut_after_it_lose_nothing(make: fn(&Stage) -> Flow) {
    let mut stage = Stage::new();
    let flow = make(&stage);
    stage.rehearse(&flow);
    let n_syncs = stage.calm.counts.syncs;
    for seed in 0..2 * n_syncs {
        stage.begin(seed);
        let cut = Cut::Sync(seed % n_syncs, Moment::Before);
        let told = Told {
            stage: &stage,
            flow: &flow,
            seed,
            plan: format!("killed at {cut:?}"),
        };
        stage.mount.machine().cut_at(Some(cut));
        let ended = stage.run_until_cut(&flow, &mut Chance::new(seed));
        stage.mount.machine().resume();
        everything_holds(&stage, &flow, &ended, false);
        drop(told);
    }
}

#[test]
fn a_killed_first_add_and_a_cut_after_the_next_lose_nothing() {
    a_kill_and_a_cut_after_it_lose_nothing(flows::first_add);
}

#[test]
fn a_killed_first_id_and_a_cut_after_the_next_lose_nothing() {
    a_kill_and_a_cut_after_it_lose_nothing(flows::identity);
}

#[test]
fn a_killed_import_and_a_cut_after_the_next_lose_nothing() {
    a_kill_and_a_cut_after_it_lose_nothing(flows::import_of_a_copy);
}

/// Each sync, write and rename of a flow fails once. The command says so or does without, and a
/// start later all is well.
fn a_failing_call_loses_nothing_that_was_reported(make: fn(&Stage) -> Flow) {
    let mut stage = Stage::new();
    let flow = make(&stage);
    stage.rehearse(&flow);
    let counts = stage.calm.counts;
    let wrongs = [
        (Call::Sync, counts.syncs, Wrong::Io),
        (Call::Rename, counts.renames, Wrong::Io),
        (Call::Write, counts.writes, Wrong::Full),
        (Call::Write, counts.writes, Wrong::Io),
        (Call::Write, counts.writes, Wrong::Short),
    ];
    let all = wrongs
        .into_iter()
        .flat_map(|(call, n, wrong)| (0..n).map(move |nth| Fault { call, nth, wrong }));
    let all: Vec<Fault> = all.collect();
    let rounds = usize::try_from(rounds(&flow)).unwrap();
    let (mut n_struck, step) = (0, all.len().div_ceil(rounds).max(1));
    for (seed, fault) in (1..).zip(all.into_iter().step_by(step)) {
        stage.begin(seed);
        let told = Told {
            stage: &stage,
            flow: &flow,
            seed,
            plan: format!("{fault:?}"),
        };
        stage.mount.machine().fail_at(vec![fault]);
        let ended = stage.run_until_cut(&flow, &mut Chance::new(seed));
        n_struck += stage.mount.machine().n_struck();
        if fault.wrong == Wrong::Short {
            assert!(
                ended.is_reported,
                "a short write is no error: {}",
                ended.stderr
            );
        }
        if !ended.is_reported {
            assert!(!ended.stderr.is_empty(), "failed without a word");
            assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        }
        // The process ended, or the machine did. In the first case the next command sees what a
        // failed sync lost, and must not take it for written.
        if seed % 2 == 0 {
            stage.mount.machine().start_again();
        } else {
            stage.mount.machine().resume();
        }
        everything_holds(&stage, &flow, &ended, false);
        drop(told);
    }
    eprintln!("{}: {n_struck} calls failed", flow.name);
    assert!(n_struck > 0, "{}: nothing failed", flow.name);
}

macro_rules! flows {
    ($($flow:ident),* $(,)?) => {
        mod cuts {
            use super::a_cut_loses_nothing_that_was_reported as cut;
            $(#[test] fn $flow() { cut(super::flows::$flow); })*
        }
        mod failures {
            use super::a_failing_call_loses_nothing_that_was_reported as fail;
            $(#[test] fn $flow() { fail(super::flows::$flow); })*
        }
    };
}

flows!(
    first_start,
    identity,
    first_add,
    add,
    add_beside_a_node,
    add_of_a_large_file,
    add_what_changed,
    import,
    import_of_a_copy,
    merge,
    index_rebuild,
    relocate,
    rm,
);

/// Cut after cut on one store, with nobody to tidy up between: what they leave does not pile up.
#[test]
fn leftovers_of_many_cuts_do_not_pile_up() {
    for make in [flows::first_add, flows::import_of_a_copy, flows::identity] {
        let mut stage = Stage::new();
        let flow = make(&stage);
        stage.rehearse(&flow);
        let seed = number("CARRACK_POWER_SEED", 1);
        let mut chance = Chance::new(seed);
        stage.begin(seed);
        let told = Told {
            stage: &stage,
            flow: &flow,
            seed,
            plan: "cut after cut".to_owned(),
        };
        for _ in 0..2 * rounds(&flow) {
            let n_changes = usize::try_from(stage.calm.counts.changes).unwrap();
            let cut = Cut::Change(chance.below(n_changes) as u64);
            stage.mount.machine().cut_at(Some(cut));
            let ended = stage.run_until_cut(&flow, &mut chance);
            stage.mount.machine().start_again();
            if ended.is_reported {
                flow.holds(&stage, &ended.words);
            }
        }
        let again = flow.run_again(&stage, &Ended::default());
        flow.holds(&stage, &again);
        stage.nothing_piled_up(&flow);
        drop(told);
    }
}

/// A sanity check of the checks: a promise that is broken is noticed.
#[test]
#[should_panic(expected = "reported and missing")]
fn a_root_that_is_missing_is_noticed() {
    let stage = Stage::new();
    let flow = flows::first_add(&stage);
    assert!(matches!(flow.promise, Promise::Root));
    flow.holds(&stage, &["bafkqaaa".to_owned()]);
}
