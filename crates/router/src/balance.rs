//! Which replica of the chosen model answers: the balancing of production, run by the simulator too.

/// What the balancer knows of one replica. Kept by whoever sends requests: credited when one is sent, debited when
/// it is done.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReplicaLoad {
    /// Requests sent and not finished.
    pub in_flight: u32,
    /// Prompt tokens of requests whose first token has not come.
    pub waiting_prompt_tokens: u64,
    /// Answer tokens still expected from the requests in flight.
    pub expected_answer_tokens: u64,
}

/// How fast a replica is, by the planner's calibrated model; equal replicas have equal speeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplicaSpeed {
    /// Prompt tokens per second when it does nothing else.
    pub prompt_tokens_per_s: f64,
    /// Answer tokens per second of all sequences together at its planned load.
    pub answer_tokens_per_s: f64,
    /// Seconds per answer token of one sequence at its planned load.
    pub seconds_per_answer_token: f64,
}

/// The request to place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSize {
    /// Prompt tokens, counted or estimated.
    pub prompt_tokens: u32,
    /// Answer tokens, expected.
    pub answer_tokens: u32,
}

/// Expected seconds from now until `request` would be finished on a replica: the prompts ahead and its own, then its
/// answer, slowed by the answers that share the replica beyond the planned load.
pub fn expected_finish_s(load: &ReplicaLoad, speed: &ReplicaSpeed, request: RequestSize) -> f64 {
    let prompts = load.waiting_prompt_tokens as f64 + f64::from(request.prompt_tokens);
    let answers = load.expected_answer_tokens as f64 + f64::from(request.answer_tokens);
    let prefill_s = prompts / speed.prompt_tokens_per_s;
    let alone_s = f64::from(request.answer_tokens) * speed.seconds_per_answer_token;
    let shared_s = answers / speed.answer_tokens_per_s;
    prefill_s + alone_s.max(shared_s)
}

/// How a replica is picked. The first is what we do; the others are there to be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balancing {
    /// The least expected finishing time, by speed, load, sizes and what is cached.
    #[default]
    LeastExpectedFinish,
    /// One after the other.
    RoundRobin,
    /// The fewest requests in flight.
    LeastRequests,
    /// Of two at random, the one with fewer requests in flight.
    PowerOfTwo,
}

impl Balancing {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::LeastExpectedFinish, Self::RoundRobin, Self::LeastRequests, Self::PowerOfTwo];

    /// As written on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeastExpectedFinish => "least-expected-finish",
            Self::RoundRobin => "round-robin",
            Self::LeastRequests => "least-requests",
            Self::PowerOfTwo => "power-of-two",
        }
    }
}

impl std::str::FromStr for Balancing {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|balancing| balancing.name() == text);
        found.ok_or_else(|| format!("there are {}", names()))
    }
}

/// A replica that could answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Whatever the caller knows it by.
    pub index: usize,
    /// What it has to do.
    pub load: ReplicaLoad,
    /// How fast it is.
    pub speed: ReplicaSpeed,
    /// Tokens of the request's prompt that it need not compute again.
    pub cached_tokens: u32,
}

/// Picks one of `candidates` and returns its index. `turn` is another number for each request, such as a count. Ties go to
/// fewer requests in flight, then to the first. `None` if there is no candidate.
pub fn pick(
    balancing: Balancing,
    candidates: &[Candidate],
    request: RequestSize,
    turn: u64,
) -> Option<usize> {
    let count = candidates.len() as u64;
    if count <= 1 {
        return candidates.first().map(|only| only.index);
    }
    let fewest = |candidates: &[Candidate]| {
        candidates.iter().min_by_key(|candidate| candidate.load.in_flight).map(|candidate| candidate.index)
    };
    match balancing {
        Balancing::LeastExpectedFinish => {
            let finish_s = |candidate: &Candidate| {
                let prompt_tokens =
                    request.prompt_tokens - candidate.cached_tokens.min(request.prompt_tokens);
                expected_finish_s(&candidate.load, &candidate.speed, RequestSize { prompt_tokens, ..request })
            };
            least(
                candidates
                    .iter()
                    .map(|candidate| (finish_s(candidate), candidate.load.in_flight, candidate.index)),
            )
        }
        Balancing::RoundRobin => Some(candidates[(turn % count) as usize].index),
        Balancing::LeastRequests => fewest(candidates),
        Balancing::PowerOfTwo => {
            let random = splitmix(turn);
            let first = random % count;
            let second = (first + 1 + (random >> 32) % (count - 1)) % count;
            fewest(&[candidates[first as usize], candidates[second as usize]])
        }
    }
}

/// `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014): a good number from a plain count.
const fn splitmix(count: u64) -> u64 {
    let mixed = count.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The index with the least expected finish; ties go to fewer requests in flight, then to the first.
fn least(replicas: impl Iterator<Item = (f64, u32, usize)>) -> Option<usize> {
    replicas.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, _, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(index: usize, in_flight: u32, answer_tokens_per_s: f64) -> Candidate {
        let speed =
            ReplicaSpeed { prompt_tokens_per_s: 1e3, answer_tokens_per_s, seconds_per_answer_token: 0.01 };
        let expected_answer_tokens = u64::from(in_flight) * 100;
        let load = ReplicaLoad { in_flight, waiting_prompt_tokens: 0, expected_answer_tokens };
        Candidate { index, load, speed, cached_tokens: 0 }
    }

    const REQUEST: RequestSize = RequestSize { prompt_tokens: 500, answer_tokens: 100 };

    #[test]
    fn each_kind_picks_by_its_own_rule() {
        let fleet = [candidate(4, 9, 1e4), candidate(7, 3, 1e2), candidate(9, 4, 1e2)];
        let by = |balancing, turn| pick(balancing, &fleet, REQUEST, turn).unwrap();
        assert_eq!(by(Balancing::LeastExpectedFinish, 0), 4, "the fast one, though it has more to do");
        assert_eq!(by(Balancing::LeastRequests, 0), 7);
        assert_eq!([0, 1, 2, 3].map(|turn| by(Balancing::RoundRobin, turn)), [4, 7, 9, 4]);
        let mut counts = [0; 10];
        (0..3000).for_each(|turn| counts[by(Balancing::PowerOfTwo, turn)] += 1);
        // Of the three pairs two hold the least loaded, none is won by the most loaded.
        assert_eq!(counts[4], 0);
        assert!((1900..2100).contains(&counts[7]), "{counts:?}");
        assert_eq!(pick(Balancing::PowerOfTwo, &[], REQUEST, 1), None);
    }

    #[test]
    fn what_is_cached_counts_until_the_load_outweighs_it() {
        let mut fleet = [candidate(0, 0, 1e3), candidate(1, 0, 1e3)];
        fleet[1].cached_tokens = 400;
        assert_eq!(pick(Balancing::default(), &fleet, REQUEST, 0), Some(1));
        fleet[1].load.waiting_prompt_tokens = 1000;
        assert_eq!(pick(Balancing::default(), &fleet, REQUEST, 0), Some(0));
    }

    #[test]
    fn names_are_read_back() {
        for balancing in Balancing::ALL {
            assert_eq!(balancing.name().parse(), Ok(balancing));
        }
        assert!("best".parse::<Balancing>().is_err());
    }
}
