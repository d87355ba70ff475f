//! Want-lists over files here, objects elsewhere, and what is neither.

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::cid::empty_identity;

use crate::ingest::tests::{bytes, options, raw};
use crate::store::block::remote::tests::{BLOCK, Setup};

/// Leaves of this machine and of elsewhere in turns, and their bytes.
fn setup() -> (Setup, Vec<(Cid, Bytes)>) {
    let setup = Setup::new();
    let (here, far) = (bytes(5, 40 * BLOCK + 7), bytes(6, 40 * BLOCK + 9));
    let file = setup.fixture.write("file", &here);
    let mut options = options();
    options.profile = options.profile.with_chunk_size(BLOCK as u32).unwrap();
    setup.fixture.add_with(&[&file], &options).unwrap();
    setup.add("object", &far);
    let leaf = |data: &[u8]| (raw(data), Bytes::copy_from_slice(data));
    let both = here.chunks(BLOCK).zip(far.chunks(BLOCK));
    let leaves = both.flat_map(|(here, far)| [leaf(here), leaf(far)]);
    (setup, leaves.collect())
}

fn cids(leaves: &[(Cid, Bytes)]) -> Vec<Cid> {
    leaves.iter().map(|(cid, _)| *cid).collect()
}

#[tokio::test]
async fn blocks_come_in_the_order_of_the_question_wherever_they_lie() {
    let (setup, mut leaves) = setup();
    leaves.reverse();
    leaves.push((empty_identity(), Bytes::new()));
    leaves.push(leaves[3].clone()); // Whoever asks twice gets it twice.
    let mut wanted = cids(&leaves);
    wanted.insert(10, raw(b"nowhere"));
    let got = setup.fixture.blocks.get_many(wanted).await;
    let mut expected: Vec<_> = leaves.into_iter().map(|(_, data)| Some(data)).collect();
    expected.insert(10, None);
    assert!(got == expected);
    assert!(setup.fixture.blocks.get_many(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_served_takes_nothing_from_the_others() {
    let (setup, leaves) = setup();
    std::fs::remove_file(setup.fixture.path("file")).unwrap();
    let mut object: Vec<u8> = Vec::new();
    for (_, data) in leaves.iter().skip(1).step_by(2) {
        object.extend_from_slice(data);
    }
    object[11 * BLOCK] ^= 1;
    setup.source.corrupt("object", &object);
    let got = setup.fixture.blocks.get_many(cids(&leaves)).await;
    for (index, ((_, data), got)) in leaves.iter().zip(got).enumerate() {
        let (is_far, is_bad) = (index % 2 == 1, index == 2 * 11 + 1);
        let expected = (is_far && !is_bad).then_some(data);
        assert!(got.as_ref() == expected, "{index}");
    }
}

#[tokio::test]
async fn what_came_from_elsewhere_is_not_read_again() {
    let (setup, leaves) = setup();
    let wanted = cids(&leaves);
    setup.source.take_counts();
    setup.fixture.blocks.get_many(wanted.clone()).await;
    let (n_reads, _) = setup.source.take_counts();
    assert!(n_reads > 0);
    let got = setup.fixture.blocks.get_many(wanted).await;
    assert!(got.iter().all(Option::is_some));
    assert_eq!(setup.source.take_counts(), (0, 0));
}
