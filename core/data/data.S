/* data.S: the table of core/rcp.h, 2 MiB, as part of the program. */
        .section .rodata
        .globl  qm_rcp_deltas
        .type   qm_rcp_deltas, @object
        .balign 64
qm_rcp_deltas:
        .incbin "rcp.bin"
        .size   qm_rcp_deltas, . - qm_rcp_deltas

        .section .note.GNU-stack, "", @progbits
