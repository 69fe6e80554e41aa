"""Parameters of the encryption: BFV at 128 bits of security, chosen for additions and nothing else.

Brakerski, *Fully homomorphic encryption without modulus switching from classical GapSVP*, CRYPTO 2012; Fan and
Vercauteren, ePrint 2012/144. A ciphertext hides N integers modulo t in polynomials modulo q. Each fresh one carries
noise of standard deviation 3.24 in every coefficient; a sum of K carries sqrt(K) as much, and can be decrypted while
that stays below q / 2t. No multiplication is ever done, so that one small prime q is enough, and the ring may be as
small as q's size allows: 27 bits at N = 1024, 54 at N = 2048 (homomorphicencryption.org's table, ternary secret, which
the library enforces).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from ..errors import ArgumentError

__all__ = ["AnyScheme", "CkksScheme", "Scheme"]

CHECKS = 2
"""Places of a ciphertext that hold sums of its values under secret weights."""

# Variance of a fresh ciphertext's noise (the library counts 21 pairs of random bits, a little more than the 3.2 of the
# standard squared), and of rounding the scaled plaintext to integers.
_VARIANCE = 21 / 2 + 1 / 12

# Standard deviations that the noise budget covers: beyond eight lies one coefficient in 10^15.
_DEVIATIONS = 8.0

# Bits of q that 128 bits of security allow, by ring.
_MOST_BITS = {1024: 27, 2048: 54}


@cache
def _prime(bits: int, ring: int) -> int:
    """Return the largest prime of so many bits that is 1 modulo 2N, so that polynomials can be multiplied by NTT."""
    candidate = (1 << bits) - 2 * ring + 1
    while not _is_prime(candidate):
        candidate -= 2 * ring
    if candidate.bit_length() != bits:
        raise ArgumentError(f"there is no prime of {bits} bits that is 1 modulo {2 * ring}")
    return candidate


def _is_prime(n: int) -> bool:
    """Whether an odd n of at most 64 bits is prime: Miller and Rabin's test, whose first 12 bases are proof there."""
    twos = ((n - 1) & (1 - n)).bit_length() - 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        power = pow(base, (n - 1) >> twos, n)
        if n == base or power == 1:
            continue
        for _ in range(twos):
            if power == n - 1:
                break
            power = power * power % n
        else:
            return False
    return True


@dataclass(frozen=True)
class Scheme:
    """How values are encrypted. Equal schemes can be added.

    Attributes:
        ring: N, the integers in one ciphertext, with its check values.
        modulus_bits: bits of the prime q; an upload takes about as many a value.
        plain_bits: bits of the prime t; sums are exact modulo t.

    Raises:
        ArgumentError: parameters that are not secure, or leave no room for noise.
    """

    ring: int = 1024
    modulus_bits: int = 26
    plain_bits: int = 18

    def __post_init__(self) -> None:
        most = _MOST_BITS.get(self.ring)
        if most is None:
            raise ArgumentError(f"ring = {self.ring} must be one of {', '.join(map(str, _MOST_BITS))}")
        least = self.ring.bit_length() + 3  # below that there need not be a prime that is 1 modulo 2N
        if not least <= self.plain_bits < self.modulus_bits:
            raise ArgumentError(
                f"plain_bits = {self.plain_bits} must be from {least} to less than modulus_bits = {self.modulus_bits}"
            )
        if 2 * self.plain_bits + self.ring.bit_length() > 64:
            raise ArgumentError(f"plain_bits = {self.plain_bits} are too many: check values would overflow")
        if self.modulus_bits > most:
            raise ArgumentError(
                f"modulus_bits = {self.modulus_bits} must be at most {most} for 128 bits of security in a ring of"
                f" {self.ring}"
            )
        if self.participants < 1:
            raise ArgumentError(
                f"modulus_bits = {self.modulus_bits} leave no room for noise beside plain_bits = {self.plain_bits}"
            )

    @property
    def name(self) -> str:
        """What configurations call this encryption."""
        return "bfv"

    @property
    def participants(self) -> int:
        """Most ciphertexts that may be added: K with 8 sqrt(K (21/2 + 1/12)) <= q / 2t."""
        room = self.modulus / (2 * self.plain_modulus)
        # Uploads are added in 64 bits before the remainder is taken.
        return min(math.floor((room / _DEVIATIONS) ** 2 / _VARIANCE), (1 << 64 - self.modulus_bits) - 1)

    @property
    def modulus(self) -> int:
        """The prime q."""
        return _prime(self.modulus_bits, self.ring)

    @property
    def plain_modulus(self) -> int:
        """The prime t."""
        return _prime(self.plain_bits, self.ring)

    @classmethod
    def of(cls, participants: int) -> Scheme:
        """Return the scheme with the fewest bytes a value that so many participants can use.

        Raises:
            ArgumentError: there is none.

        >>> Scheme.of(10), Scheme.of(100), Scheme.of(1000)
        (Scheme(ring=1024, modulus_bits=26, plain_bits=18), Scheme(ring=1024, modulus_bits=27, plain_bits=18), \
Scheme(ring=2048, modulus_bits=36, plain_bits=24))
        """
        for scheme in _SCHEMES:
            if participants <= scheme.participants:
                scheme.check(participants)
                return scheme
        raise ArgumentError(
            f"{participants} participants are more than the {_SCHEMES[-1].participants} whose noise a sum can carry:"
            " let fewer take part in a round (federation.participation)"
        )

    def check(self, participants: int) -> None:
        """Refuse a sum of too many.

        Raises:
            ArgumentError: its noise could not be told from its values.
        """
        if not 1 <= participants <= self.participants:
            raise ArgumentError(
                f"{participants} participants: this encryption (ring {self.ring}, {self.modulus_bits} bits, of which"
                f" {self.plain_bits} for values) can add from 1 to {self.participants}"
            )

    @property
    def values(self) -> int:
        """Values in one ciphertext; the other places are for check values."""
        return self.ring - CHECKS

    def blocks(self, count: int) -> int:
        """Return how many ciphertexts hold ``count`` values."""
        return -(-count // self.values)

    def used(self, count: int) -> list[int]:
        """Return how many coefficients of each ciphertext hold ``count`` values and their check values.

        What the others hold, nobody needs; of a first polynomial they are not sent.
        """
        return [min(self.values, count - start) + CHECKS for start in range(0, count, self.values)]


@dataclass(frozen=True)
class CkksScheme:
    """TenSEAL's usual parameters: ring 8192, primes of 60, 40 and 40 bits, scale 2**40; 128 bits of security.

    Attributes:
        ring: of the polynomials; a ciphertext has half as many places.
    """

    ring: int = 8192

    @property
    def name(self) -> str:
        """What configurations call this encryption."""
        return "ckks"

    @property
    def plain_modulus(self) -> int:
        """Sums of integers are within half of this, and check values modulo it: the largest prime below 2**24."""
        return 16_777_213

    @property
    def participants(self) -> int:
        """Most ciphertexts that may be added."""
        return 6204

    @property
    def values(self) -> int:
        """Values in one ciphertext; the other places are for check values."""
        return self.ring // 2 - CHECKS

    def blocks(self, count: int) -> int:
        """Return how many ciphertexts hold ``count`` values."""
        return -(-count // self.values)


AnyScheme = Scheme | CkksScheme
"""Parameters of an encryption that a configuration can name."""

_SCHEMES = (Scheme(1024, 26, 18), Scheme(1024, 27, 18), Scheme(2048, 36, 24))
